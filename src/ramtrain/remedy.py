"""What messages say of a run's RAM when a step of it has failed, and what they tell the user to type.

On the user's own machine it stays as it is, and what failed is repeated. A job of a cluster leaves its node: what is
whole comes home, and the next one begins with that, on whatever node.
"""

from __future__ import annotations

from ramtrain import caller


def kept(what: str = "What is in RAM stays there.") -> str:
    """Return what becomes of it.

    Args:
        what: what becomes of it outside of jobs, a sentence.
    """
    job = caller.job()
    return f"What is whole comes home now, and its RAM on node {job.node} is released." if job else what


def still_in_ram(folder: str) -> str:
    """Return what becomes of what a training wrote."""
    return kept(f"What it wrote is still in RAM, {folder}.")


def then(follows: str, target: str = "train") -> str:
    """Return what to type, and what follows from it.

    Args:
        follows: what does outside of jobs, where `target` is typed.
    """
    if caller.job():
        target, follows = "train", "it goes on from the newest checkpoint that came home"
    return f"type `{caller.command(target)}`: {follows}"


def repeat_export() -> str:
    """Return what to type when the cause of a failed export is mended."""
    return then("only the export is repeated")


def bring_home() -> str:
    """Return what to type when the run itself cannot go on with what is in RAM."""
    return then("it brings home what is there", "unmount")


def end_of_wait() -> str:
    """Return how a user ends a wait."""
    job = caller.job()
    return f"`scancel {job.id}` ends the wait." if job else "Ctrl-C ends the wait."


def more_memory(ended: str) -> str:
    """Return how a run comes by more memory than it finds.

    Args:
        ended: what else holds memory, and ends.
    """
    if caller.job():
        return f"a job with more memory (train.memory, or mem_mb), or waiting until {ended} have ended"
    return f"fewer runs at a time (--cores, --resources ramdisk_mb), or waiting until {ended} have ended"


def of_another() -> str:
    """Return what is to be done with what another run has left in RAM here."""
    if job := caller.job():
        return f"the next job of that folder on node {job.node} brings it home"
    return "`train` there goes on with it, `unmount` brings it home"
