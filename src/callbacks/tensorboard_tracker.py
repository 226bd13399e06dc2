"""TensorBoard, inside the run folder."""

from lightning.pytorch.loggers import TensorBoardLogger


def tensorboard_tracker(run_dir: str) -> TensorBoardLogger:
    """Lightning's logger writing to ``<run_dir>/tensorboard``: ``tensorboard --logdir <run_dir>``.

    A resumed training writes to the same folder, so that its curves go on.

    Args:
        run_dir: The run folder.

    Raises:
        ValueError: If the package is missing.
    """
    try:
        return TensorBoardLogger(run_dir, name="tensorboard", version="", default_hp_metric=False)
    except ModuleNotFoundError as error:
        raise ValueError("logger=tensorboard needs a package; type: pip install -e '.[tensorboard]'") from error
