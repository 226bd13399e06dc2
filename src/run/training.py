"""One training from one resolved configuration: what train.py runs, and what a suite runs for each of its banks."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from src.run.first_looks import look_first
from src.run.folders import is_first
from src.run.record import training_record
from src.run.resume import checkpoint_of
from src.run.targets import build
from src.run.types import check_types


@dataclass(frozen=True)
class Fitted:
    """What a training left.

    Attributes:
        made: What was made and where: the run folder's parts, then what the method exported; empty on ranks but the
            first.
        metrics: Last value of everything that was logged.
    """

    made: dict[str, str]
    metrics: dict[str, float]

    def metric(self, name: str) -> float:
        """One of the metrics.

        Raises:
            ValueError: If it was not logged.
        """
        if name not in self.metrics:
            raise ValueError(f"the training logged no {name}; choose one of: {', '.join(sorted(self.metrics))}")
        return self.metrics[name]


def fit(cfg: DictConfig, watchers: Sequence[Any] = ()) -> Fitted:
    """Build, train and export.

    Args:
        cfg: The whole configuration.
        watchers: Callbacks of Lightning that look on, beside those of the configuration.

    Raises:
        ValueError: If a part cannot be built as the configuration says, or another process trains in the run folder.
    """
    check_types(cfg)
    look_first(cfg)
    with _alone_in(Path(cfg.paths.run_dir)):
        return _fit(cfg, watchers)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keep other trainings out of a run folder; the system frees it when the process ends, however it ends."""
    if not is_first():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"another process is training in {folder}; wait for it, or leave resume=true out for a run of its own"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _fit(cfg: DictConfig, watchers: Sequence[Any]) -> Fitted:
    # Seconds of imports, which help need not wait for.
    import lightning as L

    from src.callbacks.progress import Ranks
    from src.callbacks.record import Recorded
    from src.callbacks.trackers.loggers import log_config, log_exports
    from src.callbacks.whole_steps import WholeSteps
    from src.modules.training.checkpoints import WholeCheckpoints

    # Its import sets this to INFO: advertisements and a list of devices that are not there.
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    record = training_record(cfg)
    # Before anything is loaded.
    checkpoint = checkpoint_of(cfg.paths.run_dir, record) if cfg.resume else None
    data = build(cfg.data)
    module = build(cfg.method)
    # As it is written: what is resolved holds the time of the start, which differs between processes.
    given = (build(cfg.callbacks) or {}).values()
    own = [Ranks(OmegaConf.to_yaml(cfg)), WholeSteps(), Recorded(record)]
    callbacks = [*own, *(callback for callback in given if callback is not None), *watchers]
    loggers = list((build(cfg.logger) or {}).values())
    plugins = [*(build(cfg.trainer.get("plugins")) or ()), WholeCheckpoints()]
    trainer = build(cfg.trainer, callbacks=callbacks, logger=loggers, plugins=plugins)
    log_config(loggers, cfg)
    trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    if not trainer.is_global_zero:
        return Fitted({}, metrics)
    made = {name: Path(cfg.paths.run_dir) / name for name in ("samples", "report.html")}
    exports = module.export()
    log_exports(loggers, exports)
    found = {name: str(path) for name, path in made.items() if path.exists()}
    return Fitted(found | exports, metrics)
