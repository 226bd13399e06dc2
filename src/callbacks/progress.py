"""The progress bar of a training that is as long as its steps."""

from lightning.pytorch.callbacks import RichProgressBar


class StepProgress(RichProgressBar):
    """Lightning's bar, which says what it counts; by steps, "Epoch 0/-2" says nothing."""

    def _get_train_description(self, current_epoch: int) -> str:
        return "Training".ljust(len(self.validation_description))
