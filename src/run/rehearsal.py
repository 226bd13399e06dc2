"""What trainings would cost: a few steps of the first that is missing, measured and thrown away."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import open_dict

from src.run.trained_once import Training, settings_of
from src.run.training import fit

STEPS = 8
"""Steps that are trained to measure; the first half warms up."""


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
    short = {"paths.run_dir": str(folder), "trainer.max_steps": STEPS, "trainer.log_every_n_steps": STEPS // 2}
    cfg = settings_of(missing[0], **short, **{"trainer.limit_val_batches": 0})
    with open_dict(cfg.callbacks):
        # It is thrown away: nothing to go on from.
        cfg.callbacks.pop("checkpoint", None)
    product = Path(fit(cfg).made[missing[0].product])
    seconds = 1 / _steps_a_second(folder)
    steps = settings_of(missing[0]).trainer.max_steps
    told = f"{len(missing) * steps * seconds / 60:.1f} min ({steps} steps of {seconds:.2f} s each)"
    rows += [
        ["left to train", str(len(missing))],
        ["time to train them", told],
    ]
    return Rehearsal(rows, product)


def _steps_a_second(folder: Path) -> float:
    """The last rate that the log of a training holds."""
    [path] = folder.glob("logs/*/metrics.csv")
    with open(path, newline="", encoding="utf-8") as file:
        return [float(row["perf/it_s"]) for row in csv.DictReader(file) if row.get("perf/it_s")][-1]
