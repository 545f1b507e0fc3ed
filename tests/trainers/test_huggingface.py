"""The Trainer of Hugging Face transformers: folders as checkpoints, the best of which may be an older one.

Equal after a resume, byte for byte: the model, and the losses in the order of steps. A checkpoint holds the optimizer,
the schedule and the random state, and the Trainer skips the batches that were had. Not equal: run times, and
training_args.bin, which names the checkpoint that was gone on from.
"""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trained import Trained, sha256

PAUSE_S = 0.05


def state_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "trainer_state.json").read_text())


def losses_of(state: dict[str, Any]) -> list[tuple[int, float]]:
    return [
        (entry["step"], entry[key]) for entry in state["log_history"] for key in ("loss", "eval_loss") if key in entry
    ]


def checkpoints(folder: Path) -> list[int]:
    return sorted(int(path.name.rpartition("-")[2]) for path in folder.glob("checkpoint-*[0-9]"))


def test_it_is_killed_goes_on_and_comes_home(trained: Callable[..., Trained]) -> None:
    place = trained("huggingface", "transformers", "accelerate")
    whole = place.train_whole() / "out"
    best = state_of(whole)["best_global_step"]
    assert best < 32, "the best model is not the last one"

    place.start(PAUSE_S)
    place.wait_for(f"overlay/upper/out/checkpoint-{best + 8}/trainer_state.json")
    place.process("train.py").kill()
    assert place.wait() != 0
    assert "killed by SIGKILL" in place.said()

    # As if it had been killed while it wrote the newest one, which is then none to itself either.
    newest = max(checkpoints(place.upper / "out"))
    shutil.copytree(place.upper / f"out/checkpoint-{newest}", place.upper / f"out/checkpoint-{newest + 8}")
    (place.upper / f"out/checkpoint-{newest + 8}/trainer_state.json").unlink()
    place.start(3 * PAUSE_S)
    place.wait_for_another_checkpoint()
    assert f"checkpoint-{newest + 8} was cut short" in place.said()
    assert f"going on from out/checkpoint-{newest}, which is still in RAM" in place.said()
    place.snakemake.send_signal(signal.SIGKILL)
    place.reboot()

    said = place.go_on()
    assert "from the durable checkpoint" in said
    assert sha256(place.model / "model.safetensors") == sha256(whole / "model.safetensors")
    state = state_of(place.model)
    assert losses_of(state) == losses_of(state_of(whole))
    assert (state["best_global_step"], state["best_metric"]) == (best, state_of(whole)["best_metric"])
    record = json.loads((place.results / "record.json").read_text())
    assert record["metrics"]["eval_loss"]["best"] == state["best_metric"]
    assert record["metrics"]["eval_loss"]["step_of_best"] == best
    assert record["progress"]["step"] == str(state["max_steps"])
    assert float(record["progress"]["epoch"]) == state["num_train_epochs"]


def test_asked_to_end_it_saves_a_checkpoint_in_the_middle_of_an_epoch(trained: Callable[..., Trained]) -> None:
    place = trained("huggingface", "transformers", "accelerate")
    place.config["project"]["command"] += " --enable_jit_checkpoint true"
    place.configure(place.config)
    whole = place.train_whole() / "out"
    place.start(PAUSE_S)
    place.wait_for("overlay/upper/out/checkpoint-8/trainer_state.json")
    place.snakemake.send_signal(signal.SIGTERM)
    assert place.wait() != 0
    newest = max(checkpoints(place.upper / "out"))
    assert newest % 8, "of a step within an epoch"
    assert f"going on from out/checkpoint-{newest}, which is still in RAM" in place.go_on()
    assert sha256(place.model / "model.safetensors") == sha256(whole / "model.safetensors")
