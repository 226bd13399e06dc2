"""All that the product of a training depends on: its settings, and the content of what it reads."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from src.run.targets import located
from src.run.types import options

TRAINED_FROM = ("method", "data", "trainer")
"""Parts of a training's configuration that its product depends on; a method names its backbone."""
WATCHING = ("samples", "report", "progress", "learning_rate", "throughput", "checkpoint")
"""Callbacks that only look on; others, such as an early stop, change what is learnt."""
OF_TRAINER = (
    *("default_root_dir", "val_check_interval", "check_val_every_n_epoch", "log_every_n_steps", "limit_val_batches"),
    *("num_sanity_val_steps", "enable_progress_bar", "enable_model_summary", "enable_checkpointing", "profiler"),
    *("accelerator", "strategy"),
)
"""Arguments of Lightning's Trainer that it does not depend on; our own classes name theirs in ``incidental``."""

Record = dict[str, Any]
"""Nested settings, as plain values; ``content`` of a part holds hashes of what it reads."""


def training_record(cfg: DictConfig) -> Record:
    """List what the product of a training depends on.

    A part that reads files has a method ``content`` of its settings, which hashes them by name; its ``incidental``
    settings, among them the paths of these files, are left out.

    Args:
        cfg: The configuration of the training.

    Raises:
        ValueError: If what a part reads does not exist.
    """
    parts = {name: OmegaConf.to_container(cfg[name], resolve=True) for name in TRAINED_FROM}
    watched = OmegaConf.to_container(cfg.get("callbacks") or OmegaConf.create(), resolve=True)
    assert isinstance(watched, dict)
    parts["callbacks"] = {name: one for name, one in watched.items() if name not in WATCHING and one is not None}
    found = {name: _what_counts(part) for name, part in parts.items() if part}
    return json.loads(json.dumps({"seed": cfg.seed, **found}, sort_keys=True))


def record_digest(record: Record) -> str:
    """Hash a record to 12 hexadecimal digits."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:12]


def differences(before: Record, now: Record) -> dict[str, tuple[Any, Any]]:
    """Name the settings that differ, by their keys on the command line, to their values before and now."""
    first, second = _flat(before), _flat(now)
    return {
        key: (first.get(key), second.get(key))
        for key in sorted(first.keys() | second.keys())
        if first.get(key) != second.get(key)
    }


def _flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in node.items():
        inner = isinstance(value, Mapping)
        found |= _flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return found


def _what_counts(node: Any) -> Any:
    """Settings, defaults included, without those that the class which is built from them calls incidental."""
    if isinstance(node, list):
        return [_what_counts(value) for value in node]
    if not isinstance(node, dict):
        return node
    if "_target_" not in node:
        return {key: _what_counts(value) for key, value in node.items()}
    defaults = {key: value for key, value in options(node["_target_"]).items() if _is_plain(value)}
    # A default that is written out counts in Python's spelling: 1.0, where a user may type 1.
    settings = defaults | {key: value for key, value in node.items() if defaults.get(key, ...) != value}
    left_out = _incidental(node["_target_"])
    counted = {key: _what_counts(value) for key, value in settings.items() if key not in left_out}
    content = getattr(_owner(node["_target_"]), "content", None)
    return counted if content is None else {**counted, "content": content(settings)}


def _is_plain(default: Any) -> bool:
    """Whether a default can be written in YAML."""
    return isinstance(default, str | int | float | None | list | tuple)


def _incidental(target: str) -> tuple[str, ...]:
    """What a class calls incidental."""
    return OF_TRAINER if target == "lightning.Trainer" else getattr(_owner(target), "incidental", ())


def _owner(target: str) -> Any:
    """The class that is built; of a classmethod that builds one, its class."""
    found = located(target)
    return getattr(found, "__self__", found)
