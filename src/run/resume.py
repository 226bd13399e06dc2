"""Which checkpoint a training goes on from, and whether it is of the same training."""

import sys
import textwrap
from pathlib import Path
from typing import Any

from src.data.checkpoints import stored
from src.run.record import Record, differences

LENGTH = "trainer.max_steps"
"""The one setting that may change: a longer training goes on, a shorter one ends earlier."""
NAMED = 8
"""Most differences that a refusal names."""
SHOWN = 60
"""Most characters that it shows of a value."""


class NothingToResumeError(ValueError):
    """There is no checkpoint that could be read."""


def checkpoint_of(run_dir: str | Path, record: Record) -> Path:
    """Choose the newest checkpoint of a run that is whole.

    Args:
        run_dir: Folder of the run.
        record: What the product of this training depends on, see ``training_record``.

    Raises:
        NothingToResumeError: If there is no checkpoint, or none is whole.
        ValueError: If it is of another training, whose differences are named, or longer than this one.
    """
    if not stored(run_dir):
        raise NothingToResumeError(f"{run_dir} has no checkpoint to resume; start without resume=true")
    # Seconds of imports, which a run with nothing to resume need not wait for.
    from src.modules.training.checkpoints import intact

    path, content = next(intact(run_dir), (None, {}))
    if path is None:
        raise NothingToResumeError(f"every checkpoint in {run_dir}/checkpoints is damaged; start without resume=true")
    _refuse_another(path, content.get("record"), record)
    _say_length(path, content, record)
    return path


def _refuse_another(path: Path, before: Any, now: Record) -> None:
    if not before:
        raise ValueError(
            f"{path} does not say what it was trained from, as checkpoints of earlier versions do not; start without "
            "resume=true"
        )
    differing = {key: values for key, values in differences(before, now).items() if key != LENGTH}
    if not differing:
        return
    named = [f"{key} was {_told(one)} and is {_told(other)}" for key, (one, other) in list(differing.items())[:NAMED]]
    more = f"; and {len(differing) - NAMED} more" if len(differing) > NAMED else ""
    raise ValueError(
        f"{path} is of another training: {'; '.join(named)}{more}. Resume with the settings that it began with, or "
        "start without resume=true"
    )


def _say_length(path: Path, content: dict[str, Any], record: Record) -> None:
    """Say what another number of steps means; refuse one that has passed."""
    before, now = content["record"]["trainer"].get("max_steps"), record["trainer"].get("max_steps")
    done = int(content["global_step"])
    if now is not None and 0 <= now < done:
        raise ValueError(f"{path} has {done} steps, but {LENGTH}={now}; give more, or start without resume=true")
    if before == now:
        return
    method = record["method"]
    bent = method.get("schedule", "constant") != "constant" or method.get("warmup_share") is not None
    meaning = (
        f"learning rates so far followed the curve of {before} steps, and follow that of {now} from step {done} on: "
        f"the result is that of neither length. For that of {now} steps, start without resume=true"
        if bent
        else f"it goes on to step {now}, as if that had been asked for from the start"
    )
    print(f"note: {LENGTH} was {before} and is {now}; {meaning}", file=sys.stderr)


def _told(value: Any) -> str:
    return textwrap.shorten("null" if value is None else str(value), SHOWN, placeholder="...")
