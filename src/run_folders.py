"""Where a run or a sweep writes; importing this registers the resolvers ``run_dir`` and ``sweep_dir`` of ``conf/``."""

import hashlib
import sys
from datetime import datetime
from pathlib import Path

from omegaconf import OmegaConf


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


def sweep_dir(root: str, name: str | None, task: str, resume: bool | None = None) -> str:
    """``root/<name>/<hash of the command>``: where the points of a sweep are, by their numbers.

    Args:
        root: Of all sweeps.
        name: Of the sweep's file, if there is one.
        task: Of the entry point: two scripts share no sweep.
        resume: None where the same command goes on with the same sweep, as images and scores are found again. Else,
            as a training would overwrite another: False for a new folder each time, True for the newest one.

    Raises:
        ValueError: If there is nothing to resume.
    """
    starts = ("-m", "--multirun", "sweep=", "resume=")
    told = sorted(word for word in sys.argv[1:] if not word.startswith(starts))
    digest = hashlib.sha256(" ".join([task, *told]).encode()).hexdigest()[:8]
    folder = Path(root) / (name or "multirun") / (digest if told else "default")
    if resume is None:
        return str(folder)
    folders = [folder, *(folder.with_name(f"{folder.name}_{number}") for number in range(2, 1000))]
    number_begun = next(number for number, path in enumerate(folders) if not path.exists())
    if resume and not number_begun:
        raise ValueError(f"resume=true, but {folder} does not exist; start the same sweep without resume=true")
    return str(folders[number_begun - 1 if resume else number_begun])


OmegaConf.register_new_resolver("run_dir", run_dir, use_cache=True, replace=True)
# Cached: the points of a sweep see other arguments than the sweep itself.
OmegaConf.register_new_resolver("sweep_dir", sweep_dir, use_cache=True, replace=True)
