"""What an evaluation needs trained on the way: each training once, its product kept under the hash of its settings."""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose
from omegaconf import DictConfig, OmegaConf, open_dict

from src.data.commands import override
from src.data.files import take_turns
from src.run.cli import addable, console
from src.run.home import expand_home
from src.run.targets import located
from src.run.training import fit
from src.run.types import check_types, options

TRAINED_FROM = ("method", "data", "backbone", "trainer")
"""Parts of a training's configuration that its product depends on."""
OF_TRAINER = ("default_root_dir", "val_check_interval", "check_val_every_n_epoch", "log_every_n_steps")
"""Arguments of Lightning's Trainer that it does not depend on; our own classes name theirs in ``incidental``."""
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


def train_missing(trainings: Sequence[Training], train: bool = True) -> None:
    """Train what is not there yet, shared with other processes.

    Args:
        trainings: In the order of preference.
        train: Whether anything may be trained.

    Raises:
        ValueError: If something is missing and must not be trained, or asks for several processes.
    """
    missing = [training.name for training in trainings if not training.path.exists()]
    if missing and not train:
        raise ValueError(f"a dry run trains nothing, but these are missing: {', '.join(missing)}; leave dry_run out")
    turns = take_turns(trainings, lambda one: one.path.with_suffix(".lock"), lambda one: one.path.exists())
    with closing(turns):
        for training in turns:
            console.print(f"training {training.name}, {missing.index(training.name) + 1} of {len(missing)}")
            _train(training)


def _train(training: Training) -> None:
    """Train; a training that was killed goes on from its last checkpoint."""
    run_dir = training.path.with_suffix("")
    begun = (run_dir / "checkpoints" / "last.ckpt").exists()
    told = (*training.overrides, override("paths.run_dir", str(run_dir)), override("resume", begun))
    cfg = _composed(told)
    _refuse_several_processes(cfg)
    with open_dict(cfg.callbacks):
        for name in PAGES:
            cfg.callbacks.pop(name, None)
    Path(fit(cfg).made[training.product]).replace(training.path)
    shutil.rmtree(run_dir / "checkpoints", ignore_errors=True)


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
    return cfg


def _composed(overrides: Sequence[str]) -> DictConfig:
    cfg = compose("train", [*map(addable, overrides)])
    expand_home(cfg)
    return cfg


def training_digest(cfg: DictConfig, content: Sequence[str]) -> str:
    """Hash of a training's settings, of its backbone and of what else it reads.

    Args:
        cfg: What ``composed`` gave.
        content: Hashes of images and further models.
    """
    settings = {part: _what_counts(OmegaConf.to_container(cfg[part], resolve=True)) for part in TRAINED_FROM}
    record = json.dumps([settings, cfg.seed, list(content), backbone_parts(cfg)], sort_keys=True)
    return hashlib.sha256(record.encode()).hexdigest()[:12]


def backbone_parts(cfg: DictConfig) -> dict[str, str]:
    """Hash each part of the training's backbone, without loading it; nothing where there is none."""
    if not cfg.backbone:
        return {}
    kind = located(cfg.backbone["_target_"]).__self__
    return kind.parts_of(cfg.backbone.path, cfg.backbone.get("local_files_only", False))


def _what_counts(node: Any) -> Any:
    """Settings, defaults included, without those that the class which is built from them calls incidental."""
    if not isinstance(node, dict):
        return node
    if "_target_" not in node:
        return {key: _what_counts(value) for key, value in node.items()}
    defaults = {key: value for key, value in options(node["_target_"]).items() if _is_plain(value)}
    # A default that is written out counts in Python's spelling: 1.0, where a user may type 1.
    settings = defaults | {key: value for key, value in node.items() if defaults.get(key, ...) != value}
    left_out = _incidental(node["_target_"])
    return {key: _what_counts(value) for key, value in settings.items() if key not in left_out}


def _is_plain(default: Any) -> bool:
    """Whether a default can be written in YAML."""
    return isinstance(default, str | int | float | None | list | tuple)


def _incidental(target: str) -> tuple[str, ...]:
    """What a class calls incidental; a classmethod that builds one speaks for it."""
    if target == "lightning.Trainer":
        return OF_TRAINER
    found = located(target)
    return getattr(getattr(found, "__self__", found), "incidental", ())


def files_digest(files: Sequence[Path]) -> str:
    """Hash of what files hold, whatever their names are."""
    return hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in files)).hexdigest()


def as_overrides(settings: Mapping[str, Any], prefix: str = "") -> tuple[str, ...]:
    """A nested mapping as Hydra overrides, so that a mistyped key is answered as on the command line."""
    found: list[str] = []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found += as_overrides(value, f"{prefix}{key}.")
        else:
            found.append(override(f"{prefix}{key}", value))
    return tuple(found)
