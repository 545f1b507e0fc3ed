"""The real Coqui Trainer, made to go on with a run as AllTalk's own copy of it does."""

import trainer
from trainer import TrainerArgs

__all__ = ["Trainer", "TrainerArgs"]


class Trainer(trainer.Trainer):
    """Counts epochs from 0 again when it goes on with a run, and makes as many as the run's config says."""

    def __init__(self, *args, training_assets=None, warmup=False, **options):
        super().__init__(*args, **options)
        if self.continue_run:
            self.epochs_done = 0
