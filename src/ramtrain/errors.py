"""The one kind of error that a user is meant to read."""


class RamTrainError(Exception):
    """A mistake in the input, or a state of the machine, that the user can put right.

    Its text says what happened, to which run or key, where things are now, and what to do.
    """
