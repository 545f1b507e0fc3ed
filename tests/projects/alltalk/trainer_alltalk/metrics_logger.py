"""What the Trainer prints, with the number of epochs as the Trainer of AllTalk's time had it: 0/10 to 9/10."""

from trainer.logging import ConsoleLogger


class MetricsLogger(ConsoleLogger):
    """Prints epochs of epochs."""

    def print_epoch_start(self, epoch, max_epoch, output_path=None):
        super().print_epoch_start(epoch, max_epoch + 1, output_path)

    def update_model_path(self, path):
        """Take note of the folder; the page draws curves of it."""
