"""What the entry points share: run folders, and errors as one sentence."""

import hashlib
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from datetime import datetime
from functools import wraps
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from src.error_sentences import explain

console = Console(soft_wrap=True)


def run_dir(root: str, resume: bool = False) -> str:
    """A new folder ``root/<date>_<time>``, or with ``resume`` the newest one that holds a checkpoint.

    Raises:
        ValueError: If there is nothing to resume.
    """
    folder = Path(root)
    if resume:
        found = sorted(folder.glob("*/checkpoints/last.ckpt"), key=lambda path: path.parent.parent.name)
        if not found:
            raise ValueError(f"resume=true, but no {folder}/*/checkpoints/last.ckpt exists; start without resume=true")
        return str(found[-1].parent.parent)
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    names = [stamp, *(f"{stamp}_{number}" for number in range(2, 1000))]
    return str(next(folder / name for name in names if not (folder / name).exists()))


def sweep_dir(root: str, name: str | None) -> str:
    """``root/<name>/<hash of the command>``: the same command goes on with the same sweep."""
    told = [word for word in sys.argv[1:] if word not in ("-m", "--multirun") and not word.startswith("sweep=")]
    digest = hashlib.sha256(" ".join(sorted(told)).encode()).hexdigest()[:8]
    return str(Path(root) / (name or "multirun") / (digest if told else "default"))


OmegaConf.register_new_resolver("run_dir", run_dir, use_cache=True, replace=True)
# Cached: the points of a sweep see other arguments than the sweep itself.
OmegaConf.register_new_resolver("sweep_dir", sweep_dir, use_cache=True, replace=True)


def current_sweep() -> Path | None:
    """The folder of the sweep that this job is a point of, or None."""
    hydra = HydraConfig.get()
    return Path(hydra.sweep.dir) if hydra.mode == RunMode.MULTIRUN else None


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
    cfg.paths.update({"run_dir": str(run_dir), "images_dir": str(sweep / "images")})
    for name in ("error.txt", "metrics.json"):
        (run_dir / name).unlink(missing_ok=True)
    console.rule(f"point {HydraConfig.get().job.num}", style="dim")
    try:
        _refuse_several_processes(cfg)
        main(cfg)
    except Exception as error:
        sentence = explain(error) or traceback.format_exc()
        (run_dir / "error.txt").write_text(sentence + "\n")
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
