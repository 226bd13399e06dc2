"""Banks that an evaluation needs, trained on the way: each once, kept under the hash of what it was trained from."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from src.cli import console
from src.data.images import find_images
from src.data.turns import take_turns
from src.eval.scored_concept import ConceptSource
from src.training import fit

TRAINED_FROM = ("method", "data", "backbone", "trainer")
"""Parts of a training's configuration that its bank depends on."""
PLACES = ("cache_dir", "export_path", "references", "default_root_dir", "instance_dir", "class_dir")
WATCHING = ("sampling", "num_val", "val_check_interval", "check_val_every_n_epoch", "log_every_n_steps")
"""Keys in them that it does not depend on; folders of images count by their content."""


@dataclass(frozen=True)
class Bank:
    """One bank to train."""

    name: str
    path: Path
    overrides: tuple[str, ...]


class Suite:
    """Several subjects and the experiment that learns each of them.

    Args:
        experiment: Name of a file in ``conf/experiment``.
        subjects: Concept name to what its training sets, such as ``class_noun`` and ``data.instance_dir``.
        training: What every training sets beside, nested as in the configuration: the arm of an ablation.
        cache_dir: Where banks are kept.

    Raises:
        ValueError: If there is no subject.
    """

    def __init__(
        self,
        experiment: str,
        subjects: Mapping[str, Mapping[str, Any]],
        cache_dir: str,
        training: Mapping[str, Any] | None = None,
    ) -> None:
        if not subjects:
            raise ValueError("the suite has no subject; give suite.subjects.NAME.class_noun=NOUN and its folder")
        self.experiment, self.subjects, self.cache_dir = experiment, subjects, Path(cache_dir)
        self.training = _overrides(training or {})

    def sources(self) -> dict[str, ConceptSource]:
        """What is known of each subject before its bank is trained."""
        return {
            name: ConceptSource(cfg.method.class_noun, cfg.method.references) for name, cfg in self._trainings.items()
        }

    def banks(self, train: bool = True) -> dict[str, str]:
        """Concept name to bank file; what is missing is trained now, shared with other processes.

        Raises:
            ValueError: If banks are missing and not to be trained, or a folder holds no images.
        """
        banks = [self._bank(name, cfg) for name, cfg in self._trainings.items()]
        missing = [bank.name for bank in banks if not bank.path.exists()]
        if missing and not train:
            raise ValueError(
                f"a dry run learns no bank, but these are missing: {', '.join(missing)}; leave dry_run out"
            )
        turns = take_turns(banks, lambda bank: bank.path.with_suffix(".lock"), lambda bank: bank.path.exists())
        with closing(turns):
            for bank in turns:
                console.print(f"training {bank.name}, {missing.index(bank.name) + 1} of {len(missing)} banks")
                _train(bank)
        return {bank.name: str(bank.path) for bank in banks}

    @cached_property
    def _trainings(self) -> dict[str, DictConfig]:
        """The whole configuration of each subject's training, but for its place."""
        return {name: compose("train", overrides=[*self._settings(name), "paths.run_dir=."]) for name in self.subjects}

    def _settings(self, name: str) -> tuple[str, ...]:
        return (f"+experiment={self.experiment}", f"concept={name}", *_overrides(self.subjects[name]), *self.training)

    def _bank(self, name: str, cfg: DictConfig) -> Bank:
        return Bank(name, self.cache_dir / f"{name}-{_digest(cfg)}.safetensors", self._settings(name))


def _train(bank: Bank) -> None:
    """Train one bank; a training that was killed goes on from its last checkpoint."""
    run_dir = bank.path.with_suffix("")
    begun = (run_dir / "checkpoints" / "last.ckpt").exists()
    # The sample grids would take as long as the training.
    own = (f"paths.run_dir={run_dir}", f"resume={str(begun).lower()}", "~callbacks.samples")
    made = fit(compose("train", overrides=[*bank.overrides, *own])).made
    shutil.rmtree(run_dir / "checkpoints", ignore_errors=True)
    Path(made["concept bank"]).replace(bank.path)


def _digest(cfg: DictConfig) -> str:
    """Hash of a training's settings, the images it learns from and the weights of its backbone."""
    settings = {part: _without_paths(OmegaConf.to_container(cfg[part], resolve=True)) for part in TRAINED_FROM}
    folders = [cfg.data.instance_dir, cfg.data.class_dir]
    content = [_folder_digest(folder) for folder in folders if folder]
    backbone = _backbone_hash(json.dumps(OmegaConf.to_container(cfg.backbone, resolve=True)))
    record = json.dumps([settings, cfg.seed, content, backbone], sort_keys=True)
    return hashlib.sha256(record.encode()).hexdigest()[:12]


@cache
def _backbone_hash(settings: str) -> str:
    """Of the backbone that these settings, as JSON, describe; loading it takes seconds to minutes."""
    return instantiate(json.loads(settings)).cross_attention_hash


def _without_paths(node: Any) -> Any:
    if not isinstance(node, dict):
        return node
    return {key: _without_paths(value) for key, value in node.items() if key not in (*PLACES, *WATCHING)}


def _folder_digest(folder: str) -> str:
    # Raises a sentence where there is none, before the first subject is trained.
    files = find_images(folder)
    return hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in files)).hexdigest()


def _overrides(settings: Mapping[str, Any], prefix: str = "") -> tuple[str, ...]:
    """A nested mapping as Hydra overrides, so that a mistyped key is answered as on the command line."""
    found: list[str] = []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found += _overrides(value, f"{prefix}{key}.")
        else:
            found.append(f"{prefix}{key}={json.dumps(value) if not isinstance(value, str) else value}")
    return tuple(found)
