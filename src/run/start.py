"""What is checked before anything is built: the configuration, the machine, and the places that are written to."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from src.run.types import check_types

PLACES = ("paths.root", "paths.run_dir", "paths.images_dir", "paths.cache_dir", "output")
"""Keys of folders that are written to."""
OF_LIGHTNING = ("cuda", "mps")
"""Accelerators that Lightning knows among those that torch names."""


def check_start(cfg: DictConfig) -> None:
    """Refuse a job that could not be finished, in the order of what costs least.

    Raises:
        ValueError: If a value does not fit, a folder cannot be written to, or this machine has no such device.
    """
    check_types(cfg)
    quieten_libraries()
    check_places(cfg)
    check_machine(cfg)


def quieten_libraries() -> None:
    """Leave out the bars with which libraries read weights from the disk; downloads keep theirs."""
    import diffusers.utils.logging
    import huggingface_hub.utils
    import transformers.utils.logging

    # What it warns of before an error of ours is said there.
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    huggingface_hub.utils.enable_progress_bars()


def check_places(cfg: DictConfig) -> None:
    """Make sure that every folder that is written to is one, or can be made.

    Raises:
        ValueError: With the first that is not.
    """
    for key in PLACES:
        place = OmegaConf.select(cfg, key)
        if isinstance(place, str):
            check_place(key, Path(place).expanduser())


def check_place(key: str, folder: Path) -> None:
    """Make sure that a folder, or the nearest that exists above it, can be written to.

    Raises:
        ValueError: If it is a file, or may not be written to.
    """
    absolute = folder.absolute()
    existing = next(path for path in (absolute, *absolute.parents) if os.path.lexists(path))
    if not existing.is_dir():
        raise ValueError(f"{key} is {folder}, but {existing} is no folder; give {key}=FOLDER")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"{key} is {folder}, but {existing} may not be written to; give {key}=FOLDER")


def refuse_places(words: Sequence[str]) -> None:
    """Refuse places of a single run in a sweep, whose points write into its own folder.

    Args:
        words: Overrides of a point.

    Raises:
        ValueError: With the first such place.
    """
    for word in words:
        if word.lstrip("+").startswith(("paths.run_dir=", "paths.images_dir=")):
            raise ValueError(
                f"{word} is given, but the points of a sweep and their images are in the sweep's own folder; leave it "
                "out, and give paths.root=FOLDER for another place"
            )


def check_machine(cfg: DictConfig) -> None:
    """Make sure that this machine has the GPUs, and the cores for the processes, that are asked for.

    Raises:
        ValueError: If it does not.
    """
    import torch

    # Seconds of imports.
    from src.modules.generator import usable_device

    for key, device in _devices(OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False), ""):
        usable_device(device, key)
    trainer = cfg.get("trainer")
    if not trainer or "accelerator" not in trainer:
        return
    found = torch.accelerator.current_accelerator(check_available=True)
    gpus = torch.accelerator.device_count() if found else 0
    if trainer.accelerator in ("gpu", "cuda") and found and found.type not in OF_LIGHTNING:
        raise ValueError(
            f"trainer.accelerator={trainer.accelerator}, but Lightning trains on {' and '.join(OF_LIGHTNING)}, and "
            f"this machine has {found.type}, which only draws (method.device={found.type}); give trainer=cpu"
        )
    if trainer.accelerator in ("gpu", "cuda") and not gpus:
        raise ValueError("trainer.accelerator=gpu, but this machine has no GPU that torch can use; give trainer=cpu")
    wanted, kind = _number(trainer.devices), "core" if trainer.accelerator == "cpu" else "GPU"
    there = (os.cpu_count() or 1) if kind == "core" else gpus
    if trainer.accelerator in ("cpu", "gpu", "cuda") and wanted > there:
        raise ValueError(
            f"trainer.devices={trainer.devices} starts {wanted} processes, but this machine has {there} {kind}(s); "
            f"give trainer.devices={there} or fewer"
        )


def _number(devices: Any) -> int:
    """How many devices a value of Lightning's asks for; 0 for as many as there are."""
    if isinstance(devices, int):
        return max(devices, 0)
    if isinstance(devices, str):
        if devices in ("auto", "-1"):
            return 0
        if not all(part.strip().isdecimal() for part in devices.split(",") if part) or not devices.strip(","):
            raise ValueError(f"trainer.devices is {devices!r}; give a number, a list of numbers, or auto")
        return len(devices.strip(",").split(",")) if "," in devices else int(devices)
    return len(devices)


def _devices(node: Any, path: str) -> Iterator[tuple[str, str]]:
    """Every key that is called ``device``, and its value."""
    for name, value in node.items() if isinstance(node, dict) else ():
        key = f"{path}.{name}".lstrip(".")
        if name == "device" and isinstance(value, str):
            yield key, value
        yield from _devices(value, key)
