"""Which points of a sweep have begun, which have finished, and which differ in their training seed alone."""

from collections.abc import Mapping
from pathlib import Path

import yaml

Arm = dict[int, Path]
"""The folder of the point of each training seed; 0 where none is set."""
OVERRIDES = Path(".hydra") / "overrides.yaml"


def finished(folder: Path, since: int = 0) -> list[Path]:
    """Folders of the points that have finished, in their order.

    Args:
        folder: Holds one folder per point, named by its number.
        since: When the sweep was started, in nanoseconds since the epoch. What a point left before belongs to an
            earlier start, which may have had other encoders, banks or points.
    """
    return [job for job in _jobs(folder, since) if _written_since(job / "metrics.json", since)]


def whole_arms(folder: Path, since: int = 0) -> dict[str, Arm]:
    """By label, the points that can be compared; arguments as of ``finished``.

    A label says what a point sets and not all points set, but for the training seed. An arm is whole when the points of
    all training seeds have finished: the mean over other seeds than its neighbours' could not be paired with theirs.
    """
    arms, done = _arms(folder, since), set(finished(folder, since))
    seeds = _training_seeds(arms)
    return {label: arm for label, arm in arms.items() if set(arm) == seeds and done.issuperset(arm.values())}


def failures(folder: Path, since: int = 0) -> dict[str, str]:
    """By label, what became of each arm that is not whole; arguments as of ``finished``."""
    arms, done = _arms(folder, since), set(finished(folder, since))
    seeds = sorted(_training_seeds(arms))
    found = {}
    for label, arm in arms.items():
        told = {seed: _failure(arm.get(seed)) for seed in seeds if arm.get(seed) not in done}
        if told:
            each = [f"training seed {seed}: {sentence}" for seed, sentence in told.items()]
            found[label] = "; ".join(each if len(seeds) > 1 else told.values())
    return found


def _jobs(folder: Path, since: int) -> list[Path]:
    """Points that this start of the sweep has begun; Hydra writes the overrides of each before it runs."""
    numbered = sorted((path for path in folder.iterdir() if path.name.isdecimal()), key=lambda path: int(path.name))
    return [path for path in numbered if _written_since(path / OVERRIDES, since)]


def _written_since(path: Path, since: int) -> bool:
    return path.exists() and path.stat().st_mtime_ns >= since


def _failure(job: Path | None) -> str:
    error = job / "error.txt" if job else None
    return error.read_text().strip() if error and error.exists() else "has not finished"


def _arms(folder: Path, since: int) -> dict[str, Arm]:
    arms: dict[tuple[str, ...], Arm] = {}
    for job in _jobs(folder, since):
        told = [one.lstrip("+") for one in yaml.safe_load((job / OVERRIDES).read_text())]
        # The last one counts, for Hydra too.
        seeds = [int(one.partition("=")[2]) for one in told if one.startswith("training.seed=")]
        settings = tuple(one for one in told if not one.startswith(("sweep=", "training.seed=")))
        arms.setdefault(settings, {})[seeds[-1] if seeds else 0] = job
    common = set.intersection(*map(set, arms)) if len(arms) > 1 else set()
    return {
        ", ".join(one for one in settings if one not in common) or next(iter(arm.values())).name: arm
        for settings, arm in arms.items()
    }


def _training_seeds(arms: Mapping[str, Arm]) -> set[int]:
    return {seed for arm in arms.values() for seed in arm}
