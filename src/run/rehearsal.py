"""What trainings would cost: a few steps, measured and thrown away."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf, open_dict

from src.run.trained_once import Training, settings_of
from src.run.training import fit

if TYPE_CHECKING:
    from src.callbacks.stopwatch import Stopwatch

STEPS = 8
"""Steps that an evaluation trains to measure; the first half warms up."""
OF_A_STEP = 2
"""Steps that a dry run of a training takes; the first warms up."""


@dataclass(frozen=True)
class Rehearsal:
    """What trainings would cost.

    Attributes:
        rows: What is counted and timed, for the table of a dry run.
        product: What a few steps gave, which draws as slowly as what all of them would give; None if nothing is
            missing.
    """

    rows: list[list[str]]
    product: Path | None


def rehearsed(trainings: Sequence[Training], folder: Path) -> Rehearsal:
    """Count trainings that are missing, and measure the first of them.

    Args:
        trainings: All that an evaluation needs.
        folder: Scratch, for the few steps.
    """
    missing = [training for training in trainings if not training.path.exists()]
    rows = [["trainings asked for", str(len(trainings))], ["trained already", str(len(trainings) - len(missing))]]
    if not missing:
        return Rehearsal(rows, None)
    cfg = settings_of(missing[0])
    steps = cfg.trainer.max_steps
    watch, made = measured(cfg, STEPS, folder)
    seconds = _of_a_step(watch)
    told = f"{len(missing) * steps * seconds / 60:.1f} min ({steps} steps of {seconds:.2f} s each)"
    rows += [
        ["left to train", str(len(missing))],
        ["time to train them", told],
    ]
    return Rehearsal(rows, Path(made[missing[0].product]))


def planned(cfg: DictConfig) -> list[list[str]]:
    """Measure two steps and one picture of a training in one process, and keep nothing.

    Args:
        cfg: The configuration of the training.

    Returns:
        What it would train, take and leave, by name.

    Raises:
        ValueError: As ``fit``, or if it asks for several processes or has no last step.
    """
    devices = cfg.trainer.devices
    if devices not in (1, "1"):
        raise ValueError(f"dry_run=true measures one process, but trainer.devices={devices}; give trainer.devices=1")
    if cfg.trainer.max_steps < 1:
        raise ValueError(f"trainer.max_steps is {cfg.trainer.max_steps}, which never ends; give a number of steps")
    steps, samples = cfg.trainer.max_steps, OmegaConf.select(cfg, "callbacks.samples.prompts")
    with TemporaryDirectory() as scratch:
        watch, made = measured(cfg, OF_A_STEP, Path(scratch), samples[0] if samples else None)
        products = [Path(path) for what, path in made.items() if what != "next"]
        exported = sum(path.stat().st_size for path in products if path.is_file())
    seconds, drawn = _of_a_step(watch), watch.picture
    pixels = f"{drawn.width} x {drawn.height}, {watch.picture_seconds:.1f} s" if drawn else "none: no samples are drawn"
    rows = [
        ["parameters trained", f"{watch.trained:,}"],
        ["images found", str(watch.photos) if watch.photos else "not counted"],
        ["seconds a step", f"{seconds:.2f}"],
        ["hours in all", f"{steps * seconds / 3600:.2f} ({steps} steps; validation and samples come on top)"],
        ["one sample", pixels],
        ["peak memory", f"{watch.peak / 2**30:.1f} GiB {_of_what()}"],
        ["a checkpoint", f"{_told(watch.checkpoint_bytes)}; two are kept"],
        ["the export", _told(exported)],
    ]
    if watch.has_prior and not cfg.data.get("class_dir"):
        rows.insert(2, ["class images", f"{cfg.data.num_class_images} of each class, drawn before the first step"])
    return rows


def measured(
    cfg: DictConfig, steps: int, folder: Path, prompt: str | None = None, **changes: Any
) -> tuple["Stopwatch", dict[str, str]]:
    """Train a few steps in scratch, without loggers, callbacks, validation and what is only prepared for many steps.

    Args:
        cfg: The configuration of the whole training, which stays as it is.
        steps: Number of steps.
        folder: Scratch, which also takes the place of the cache.
        prompt: What is drawn after the last step; None to draw nothing.
        changes: Further keys to their values.

    Returns:
        What was measured, and what was made and where.

    Raises:
        ValueError: As ``fit``.
    """
    # Seconds of imports.
    from src.callbacks.stopwatch import Stopwatch

    short = {
        "paths.run_dir": str(folder),
        "paths.cache_dir": str(folder / "cache"),
        "trainer.max_steps": steps,
        "trainer.limit_val_batches": 0,
        "trainer.enable_checkpointing": False,
        "trainer.enable_progress_bar": False,
        "resume": False,
        "logger": None,
        "callbacks": None,
        **changes,
    }
    # Of these one is enough to measure with.
    few = {"data.num_class_images": 1, "method.learner.encode_ahead": False}
    cfg = cfg.copy()
    with open_dict(cfg):
        for key, value in short.items():
            OmegaConf.update(cfg, key, value, merge=False)
        for key, value in few.items():
            if OmegaConf.select(cfg, key) is not None:
                OmegaConf.update(cfg, key, value)
    watch = Stopwatch(folder, prompt)
    return watch, fit(cfg, [watch]).made


def _of_a_step(watch: "Stopwatch") -> float:
    """The mean of the later half of the steps."""
    late = watch.seconds[len(watch.seconds) // 2 :]
    return sum(late) / len(late)


def _told(number: int) -> str:
    """Bytes in the unit that suits them."""
    return f"{number / 1e6:.1f} MB" if number >= 1e6 else f"{number / 1e3:.1f} kB"


def _of_what() -> str:
    import torch

    return "of the GPU" if torch.accelerator.is_available() else "of the process"
