"""What the entry points share: points of a sweep, and errors as one sentence."""

import os
import sys
import traceback
import warnings
from collections.abc import Callable
from functools import cache, wraps
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from rich.console import Console

import src.run_folders  # noqa: F401  (registers the resolvers)
from src.error_sentences import explain

RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
"""Where launchers tell a process its number."""
# The first process speaks for all.
console = Console(soft_wrap=True, quiet=any(os.environ.get(name, "0") != "0" for name in RANKS))


class Sweep(NamedTuple):
    """A sweep that is running.

    Attributes:
        folder: Holds one folder per point.
        started: Nanoseconds since the epoch; what points left before is of an earlier start.
    """

    folder: Path
    started: int


def current_sweep() -> Sweep | None:
    """The sweep that this job is a point of, or None."""
    hydra = HydraConfig.get()
    return _sweep_in(Path(hydra.sweep.dir)) if hydra.mode == RunMode.MULTIRUN else None


@cache
def _sweep_in(folder: Path) -> Sweep:
    # Hydra writes this file once per start, by the clock that also dates the points. It is read once: another shell
    # that joins the sweep writes it anew, and what we have finished stays finished.
    return Sweep(folder, (folder / "multirun.yaml").stat().st_mtime_ns)


def point(main: Callable[[DictConfig], None]) -> Callable[[DictConfig], None]:
    """Wrap a job, inside ``@hydra.main``: a point of a sweep has its own folder, where ``error.txt`` says if it failed.

    Hydra goes on with the other points and raises the first failure at the end.
    """

    @wraps(main)
    def job(cfg: DictConfig) -> None:
        # A launcher with processes of its own sends this function to them by value, what it calls by name.
        _run_point(main, cfg)

    return job


def _run_point(main: Callable[[DictConfig], None], cfg: DictConfig) -> None:
    sweep = current_sweep()
    if sweep is None:
        main(cfg)
        return
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    # Points share what they have in common, such as the images of the control.
    cfg.paths.update({"run_dir": str(run_dir), "images_dir": str(sweep.folder / "images")})
    if cfg.get("resume"):
        # Points that a killed sweep had not come to start now.
        cfg.resume = (run_dir / "checkpoints" / "last.ckpt").exists()
    (run_dir / "error.txt").unlink(missing_ok=True)
    console.rule(f"point {HydraConfig.get().job.num}", style="dim")
    try:
        _refuse_several_processes(cfg)
        main(cfg)
    except Exception as error:
        sentence = explain(error) or traceback.format_exc()
        (run_dir / "error.txt").write_text(sentence + "\n")
        (run_dir / "metrics.json").unlink(missing_ok=True)
        console.print(f"this point failed: {sentence}", style="red", highlight=False)
        raise


def _refuse_several_processes(cfg: DictConfig) -> None:
    """Lightning starts further ranks with our own command line: each would run the whole sweep."""
    trainer = cfg.get("trainer")
    several = trainer and (trainer.devices not in (1, "1") or trainer.get("num_nodes", 1) > 1)
    if several and "SLURM_NTASKS" not in os.environ:
        raise ValueError(
            f"trainer.devices={trainer.devices} in a sweep would start the whole sweep on every rank; use "
            "trainer.devices=1, or let hydra/launcher=submitit_slurm start one task per GPU"
        )


def friendly(main: Callable[..., None]) -> Callable[..., None]:
    """Wrap an entry point, outside ``@hydra.main``: what the user can mend is one sentence and exit code 1.

    ``HYDRA_FULL_ERROR=1`` shows the trace. What no user can mend is a bug of ours and keeps its trace.
    """

    @wraps(main)
    def run(*args: Any) -> None:
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        for category in (UserWarning, FutureWarning, DeprecationWarning):
            warnings.filterwarnings("ignore", category=category, module="lightning")
        sys.argv[1:] = [_with_plus(argument) for argument in sys.argv[1:]]
        wants_trace = os.environ.get("HYDRA_FULL_ERROR") == "1"
        # Without it, Hydra prints its own text and exits before we see the error.
        os.environ["HYDRA_FULL_ERROR"] = "1"
        try:
            main(*args)
        except Exception as error:
            sentence = explain(error)
            if wants_trace or sentence is None:
                raise
            print(f"error: {sentence}", file=sys.stderr)
            sys.exit(1)

    return run


# Keys that a user may add, which plain Hydra wants marked: an experiment is no part of the defaults list (`+`), the
# names of banks are the user's own (`++`, so that the same name in an experiment is replaced), and so are the keys of a
# training that an evaluation changes.
_ADDABLE = {"experiment=": "+", "bank.": "++", "references.": "++", "training.": "++", "suite.subjects.": "++"}


def _with_plus(argument: str) -> str:
    return next((plus + argument for start, plus in _ADDABLE.items() if argument.startswith(start)), argument)
