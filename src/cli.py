"""What the entry points share: run folders, and errors as one sentence."""

import logging
import os
import sys
import warnings
from collections.abc import Callable
from datetime import datetime
from functools import wraps
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

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


def friendly(main: Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
    """Turn a ``ValueError`` or ``FileNotFoundError`` for the user into one sentence and exit code 1.

    ``HYDRA_FULL_ERROR=1`` shows the trace. Everything else is a bug of ours and keeps its trace.
    """

    @wraps(main)
    def run(cfg: DictConfig) -> Any:
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        warnings.filterwarnings("ignore", category=UserWarning, module="lightning")
        logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
        try:
            return main(cfg)
        except (ValueError, FileNotFoundError, OSError) as error:
            if os.environ.get("HYDRA_FULL_ERROR") == "1":
                raise
            root = error
            while root.__cause__ is not None:
                root = root.__cause__
            print(f"error: {root}", file=sys.stderr)
            sys.exit(1)

    return run
