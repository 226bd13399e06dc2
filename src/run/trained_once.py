"""What an evaluation needs trained on the way: each training once, its product kept under the hash of its settings."""

import shutil
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose
from omegaconf import DictConfig, open_dict

from src.data.checkpoints import stored
from src.data.commands import override
from src.data.files import take_turns
from src.run.cli import addable, console
from src.run.first_looks import look_first
from src.run.home import expand_home
from src.run.resume import NothingToResumeError
from src.run.training import fit
from src.run.types import check_types

PAGES = ("samples", "report")
"""Callbacks that are left out: sample grids would take as long as the training."""


@dataclass(frozen=True)
class Training:
    """One training whose product is kept.

    Attributes:
        name: What the screen calls it.
        product: What ``fit`` calls it, such as ``adapter``.
        path: Where it is kept.
        overrides: What its configuration changes, as on the command line.
    """

    name: str
    product: str
    path: Path
    overrides: tuple[str, ...]


def train_missing(trainings: Sequence[Training]) -> None:
    """Train what is not there yet, shared with other processes.

    Args:
        trainings: In the order of preference.

    Raises:
        ValueError: If one asks for several processes.
    """
    missing = [training.name for training in trainings if not training.path.exists()]
    turns = take_turns(trainings, lambda one: one.path.with_suffix(".lock"), lambda one: one.path.exists())
    with closing(turns):
        for training in turns:
            console.print(f"training {training.name}, {missing.index(training.name) + 1} of {len(missing)}")
            _train(training)


def _train(training: Training) -> None:
    """Train; a training that was killed goes on from its last checkpoint."""
    run_dir = training.path.with_suffix("")
    cfg = settings_of(training, **{"paths.run_dir": str(run_dir), "resume": bool(stored(run_dir))})
    try:
        fitted = fit(cfg)
    except NothingToResumeError as error:
        console.print(f"{error}; {training.name} begins anew", highlight=False)
        cfg.resume = False
        fitted = fit(cfg)
    Path(fitted.made[training.product]).replace(training.path)
    shutil.rmtree(run_dir / "checkpoints", ignore_errors=True)


def settings_of(training: Training, **changes: Any) -> DictConfig:
    """The configuration of a training, with some keys changed and without pages that nobody looks at.

    Raises:
        ValueError: If it asks for several processes.
    """
    cfg = _composed((*training.overrides, *(override(key, value) for key, value in changes.items())))
    _refuse_several_processes(cfg)
    with open_dict(cfg.callbacks):
        for name in PAGES:
            cfg.callbacks.pop(name, None)
    return cfg


def _refuse_several_processes(cfg: DictConfig) -> None:
    """Lightning starts further ranks with our own command line: they would wait for this one's lock for ever."""
    if cfg.trainer.devices not in (1, "1"):
        raise ValueError(
            f"training.trainer.devices={cfg.trainer.devices}, but an evaluation trains on one process; use 1, and give "
            "the same command in several shells: they share the trainings"
        )


def composed(overrides: Sequence[str]) -> DictConfig:
    """The whole configuration of a training, but for its place."""
    cfg = _composed([*overrides, "paths.run_dir=."])
    check_types(cfg)
    look_first(cfg)
    return cfg


def _composed(overrides: Sequence[str]) -> DictConfig:
    cfg = compose("train", [*map(addable, overrides)])
    expand_home(cfg)
    return cfg


def as_overrides(settings: Mapping[str, Any], prefix: str = "") -> tuple[str, ...]:
    """A nested mapping as Hydra overrides, so that a mistyped key is answered as on the command line."""
    found: list[str] = []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found += as_overrides(value, f"{prefix}{key}.")
        else:
            found.append(override(f"{prefix}{key}", value))
    return tuple(found)
