"""Examine a checkpoint on this machine, as train.py and generate.py use it, and write a page that one can attach."""

import gc
import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import torch
from omegaconf import DictConfig, OmegaConf

from src.data.finite import check_finite
from src.modules.backbones.checkpoint import Checkpoint
from src.modules.generator import usable_device
from src.modules.latexblend.generator import ConceptGenerator
from src.run.checks import NAME, NOUN, as_plain, as_stock, files, model, picture, places
from src.run.errors import explain
from src.run.rehearsal import measured
from src.run.targets import build
from src.run.trained_once import as_overrides, composed

PACKAGES = ("torch", "diffusers", "transformers", "lightning", "safetensors", "atelier")


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        check: What was examined.
        passed: Whether it is as it should be.
        seen: What was seen.
        advice: What to do where it is not.
    """

    check: str
    passed: bool
    seen: str
    advice: str


@dataclass(frozen=True)
class Examination:
    """A checkpoint on this machine.

    Attributes:
        machine: Names and values that a report needs.
        findings: One of each check.
    """

    machine: dict[str, str]
    findings: list[Finding]

    @property
    def failed(self) -> list[Finding]:
        """Findings of checks that did not pass."""
        return [one for one in self.findings if not one.passed]

    def markdown(self) -> str:
        """Write a page that names no folder of the user's."""
        told = [f"- {name}: {value}" for name, value in self.machine.items()]
        lines = [f"- {'passed' if one.passed else '**FAILED**'}: {one.check}: {one.seen}" for one in self.findings]
        advice = [f"- {one.check}: {one.advice}" for one in self.failed]
        parts = ["# Doctor", *told, "## Checks", *lines, *(["## What to do", *advice] if advice else [])]
        page = "\n".join(f"\n{one}\n" if one.startswith("#") else one for one in parts).strip() + "\n"
        return page.replace(str(Path.home()), "~")


OURS = "report it with this page: nothing in the checkpoint can cause it"


def examined(cfg: DictConfig, backbone: str) -> Examination:
    """Examine a checkpoint; what is trained and drawn on the way is thrown away.

    Args:
        cfg: The configuration of doctor.py.
        backbone: Name of the file in ``conf/backbone`` that was chosen.
    """
    with TemporaryDirectory() as scratch:
        patient = _Patient(cfg, backbone, Path(scratch))
        findings = [
            _finding(
                "files",
                "give backbone.path=FOLDER with a copy that save_pretrained wrote, as safetensors",
                lambda: files(_place(cfg)),
            ),
            _finding(
                "model",
                "choose the backbone= that fits these files, and a backbone.dtype that they were made for",
                lambda: model(patient.generator),
            ),
            _finding("no concepts, the stock pipeline", OURS, lambda: as_stock(patient.generator)),
            _finding("places of concepts in prompts", OURS, lambda: places(patient.generator.backbone)),
            _finding(
                "a step of training",
                "take backbone.dtype=bfloat16 where it is not finite, and see the README of src/modules/training "
                "where memory is short",
                patient.step,
            ),
            _finding("cached keys and values, plain ones", OURS, lambda: as_plain(patient.learnt)),
            _finding(
                "a picture",
                "take backbone.dtype=bfloat16 or float32, in which nothing overflows",
                lambda: picture(patient.learnt),
            ),
        ]
    return Examination(machine(cfg), findings)


def _finding(check: str, advice: str, look: Callable[[], str]) -> Finding:
    """Look, and take every error for a finding."""
    try:
        return Finding(check, True, look(), advice)
    except Exception as error:
        told = explain(error) or f"{type(error).__name__}: {error}"
        return Finding(check, False, " ".join(told.split()), advice)


class _Patient:
    """One checkpoint: loaded to draw, put away to train as train.py does, and loaded again with the concept.

    Args:
        cfg: The configuration of doctor.py.
        backbone: Name of the file in ``conf/backbone`` that was chosen.
        folder: Scratch.
    """

    def __init__(self, cfg: DictConfig, backbone: str, folder: Path) -> None:
        self.cfg, self.backbone, self.folder = cfg, backbone, folder
        self.bank: str | None = None
        self._generator: ConceptGenerator | None = None

    @property
    def generator(self) -> ConceptGenerator:
        """What generate.py builds from the same configuration, with the concept if one was learnt."""
        if self._generator is None:
            OmegaConf.update(self.cfg, "bank", {NAME: self.bank} if self.bank else {}, force_add=True)
            self._generator = build(self.cfg.method)
        return self._generator

    @property
    def learnt(self) -> ConceptGenerator:
        """The same, once the concept was learnt.

        Raises:
            ValueError: If it was not.
        """
        if self.bank is None:
            raise ValueError("no concept was learnt to draw with: see a step of training")
        return self.generator

    def step(self) -> str:
        """Take one step of training, and keep the concept for what is drawn next.

        Raises:
            ValueError: As ``fit``, or if nothing has a gradient.
        """
        side = self.generator.backbone.resolution
        cfg = self._training(max(min(side, 512), side // 2))
        self._generator = None
        gc.collect()
        watch, made = measured(cfg, 1, self.folder)
        [norm] = watch.norms
        check_finite(torch.tensor(norm), "the gradients")
        if norm == 0:
            raise ValueError("all gradients are zero, so nothing would be learnt")
        self.bank = made["concept bank"]
        told = f"{watch.trained:,} parameters, gradients of norm {norm:.2g}, {watch.seconds[0]:.2f} s"
        return f"{told}, peak memory {watch.peak / 2**30:.1f} GiB, views of {cfg.data.resolution} pixels"

    def _training(self, side: int) -> DictConfig:
        """What train.py composes for this checkpoint."""
        own: Any = OmegaConf.to_container(self.cfg.backbone, resolve=True)
        given = {key: value for key, value in own.items() if key != "_target_"}
        small = {"resolution": side, "batch_size": 1, "num_views": 1, "num_val": 0}
        settings = {"concept": NAME, "class_noun": NOUN, "data": small, "seed": self.cfg.seed, "backbone": given}
        accelerator = "cpu" if usable_device("auto", "trainer").type == "cpu" else "gpu"
        chosen = ("+experiment=concept_dog", f"backbone={self.backbone}", f"trainer={accelerator}")
        more: Any = OmegaConf.to_container(self.cfg.training, resolve=True)
        return composed((*chosen, *as_overrides(settings), *as_overrides(more)))


def machine(cfg: DictConfig) -> dict[str, str]:
    """List what runs here: versions, device and memory."""
    versions = ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    device = usable_device("auto", "device")
    name = platform.processor() or platform.machine()
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        name = f"{torch.cuda.get_device_name(device)}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    memory = psutil.virtual_memory()
    return {
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "packages": versions,
        "device": f"{device.type}: {name}",
        "memory": f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free",
        "threads": str(torch.get_num_threads()),
        "checkpoint": Path(str(cfg.backbone.get("path"))).name,
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _place(cfg: DictConfig) -> Path:
    """Where the checkpoint is on this machine; a hub id is fetched, as for drawing."""
    found = Checkpoint.of(cfg.backbone)
    return found.place or found.folder()
