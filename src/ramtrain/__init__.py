"""Train any project on a RAM disk and bring the model home."""

__version__ = "0.1.0"
