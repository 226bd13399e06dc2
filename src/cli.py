"""What the entry points share: run folders, and errors as one sentence."""

import os
import sys
import warnings
from collections.abc import Callable
from datetime import datetime
from functools import wraps
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
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


OmegaConf.register_new_resolver("run_dir", run_dir, use_cache=True, replace=True)


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


# Keys that a user may add, which plain Hydra wants marked: an experiment is no part of the defaults list (`+`), and the
# names of banks are the user's own (`++`, so that the same name in an experiment is replaced).
_ADDABLE = {"experiment=": "+", "bank.": "++", "references.": "++"}


def _with_plus(argument: str) -> str:
    return next((plus + argument for start, plus in _ADDABLE.items() if argument.startswith(start)), argument)
