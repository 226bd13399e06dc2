"""Where runs and sweeps are: a folder of its own for each run, and for each sweep one that its command finds again."""

import atexit
import hashlib
import os
import shutil
import sys
import tempfile
from contextlib import suppress
from datetime import datetime
from functools import cache
from itertools import chain, count, takewhile
from pathlib import Path

from omegaconf import OmegaConf

from src.data.checkpoints import newest_run

RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
"""Where launchers tell a process its number."""
typed: dict[str, str] = {}
"""Arguments as Hydra gets them to what was typed, by which a sweep is found again."""
RUN_DIR = "ATELIER_RUN_DIR"
"""By which the first process tells those that it starts where the run is."""
named: dict[str, str] = {}
"""Folder of all runs of a name to the folder of this process's run."""
PLANNED = "_plan"
"""Behind the name of a sweep's folder, where it is only planned (``dry_run=true``)."""


def is_first() -> bool:
    """Whether this is the process that speaks and makes folders for all that train together."""
    return all(os.environ.get(name, "0") == "0" for name in RANKS)


def run_dir(root: str, resume: bool = False) -> str:
    """Name the folder of a run: ``root/<date>_<time>``, or with ``resume`` the newest one that holds a checkpoint.

    Of several processes only the first names one. Those that Lightning starts are told where it is; those that a
    launcher starts write nothing, and what Hydra puts there for them goes when they end.

    Raises:
        ValueError: If there is nothing to resume.
    """
    folder = Path(root).expanduser()
    if resume:
        return str(newest_run(folder))
    if not is_first():
        return os.environ.get(RUN_DIR) or _scratch()
    return named.setdefault(root, str(folder / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")))


def made(path: str) -> str:
    """Make the folder that ``run_dir`` named, under another name if that is taken; other paths stay.

    Only Hydra asks for it, when a job begins: to read or compose a configuration makes nothing.
    """
    root = str(Path(path).parent)
    if named.get(root) != path:
        return path
    named[root] = os.environ[RUN_DIR] = str(new_folder(Path(path)))
    return named[root]


def new_folder(wanted: Path) -> Path:
    """Make a folder that no other process has: ``wanted``, or ``wanted`` with a number behind it."""
    wanted.parent.mkdir(parents=True, exist_ok=True)
    for number in count(1):
        folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}_{number}")
        with suppress(FileExistsError):
            folder.mkdir()
            return folder
    raise AssertionError("numbers do not end")


@cache
def _scratch() -> str:
    folder = tempfile.mkdtemp(prefix="atelier-rank-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def sweep_dir(
    root: str, sweep: str | None, experiment: str | None, task: str, resume: bool | None = None, dry_run: bool = False
) -> str:
    """``root/<name>/<hash of the command>``: where the points of a sweep are, by their numbers.

    Args:
        root: The folder of all sweeps.
        sweep: The name of the sweep's file, if there is one, which names the folder.
        experiment: That of the experiment's, which names it otherwise.
        task: The entry point's name: two scripts share no sweep.
        resume: None where the same command goes on with the same sweep, as images and scores are found again. Else,
            as a training would overwrite another: False for a new folder each time, True for the newest one.
        dry_run: Whether it is only planned, beside the folder that it would have.

    Raises:
        ValueError: If there is nothing to resume.
    """
    starts = ("-m", "--multirun", "sweep=", "resume=", "dry_run=")
    told = sorted(typed.get(word, word) for word in sys.argv[1:] if not word.startswith(starts))
    name = sweep or (experiment or "multirun").replace("/", "_")
    digest = hashlib.sha256(" ".join([task, *told]).encode()).hexdigest()[:8]
    folder = Path(root).expanduser() / name / ((digest if told else "default") + PLANNED * dry_run)
    if resume is None:
        return str(folder)
    if not resume:
        return str(new_folder(folder))
    begun = chain([folder], (folder.with_name(f"{folder.name}_{number}") for number in count(2)))
    newest = list(takewhile(Path.exists, begun))[-1:]
    if not newest:
        raise ValueError(f"resume=true, but {folder} does not exist; start the same sweep without resume=true")
    return str(newest[0])


OmegaConf.register_new_resolver("run_dir", run_dir, replace=True)
# One job, one folder, however often it is asked for.
OmegaConf.register_new_resolver("made", made, use_cache=True, replace=True)
# Cached: the points of a sweep see other arguments than the sweep itself.
OmegaConf.register_new_resolver("sweep_dir", sweep_dir, use_cache=True, replace=True)
