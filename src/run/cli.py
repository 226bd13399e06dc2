"""From a command line to a job: spellings, points of a sweep, and errors as one sentence."""

import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache, wraps
from pathlib import Path
from typing import Any, NamedTuple

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from src.data.checkpoints import stored
from src.run.endings import INTERRUPTED, remove_empty, stopped
from src.run.errors import explain
from src.run.folders import PLANNED, is_first, named, typed
from src.run.home import expand_home, typed_at_home
from src.run.precision import fastest_precision
from src.run.recall import recalled
from src.run.spelling import ARGUMENT, GIVEN_WHOLE, METHODS, respelling
from src.run.start import check_start, refuse_places
from src.run.targets import CONF, refuse_foreign_files
from src.run.types import check_given
from src.run.utf8 import check_utf8, start_in_utf8
from src.run.words import flags_first, refuse_words, shortened

NAMES = ("bank.", "layout.", "references.", "training.", "suite.subjects.")
ADDABLE = {"experiment=": "+", "card=": "+", "optimizer=": "+", **dict.fromkeys(NAMES, "++")}
"""Keys that a user may add, which plain Hydra wants marked: `+` for what is no part of the defaults list, and `++` for
names of the user's own, which replace those of an experiment, and for what an evaluation changes of a training."""
console = Console(soft_wrap=True, quiet=not is_first())


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
    expand_home(cfg)
    sweep = current_sweep()
    if sweep is None:
        check_start(cfg)
        main(cfg)
        return
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    # Points share what they have in common, such as the images of the control; a plan counts those that are there.
    images = sweep.folder.with_name(sweep.folder.name.removesuffix(PLANNED)) / "images"
    cfg.paths.update({"run_dir": str(run_dir), "images_dir": str(images)})
    if cfg.get("resume"):
        # Points that a killed sweep had not come to start now.
        cfg.resume = bool(stored(run_dir))
    (run_dir / "error.txt").unlink(missing_ok=True)
    console.rule(f"point {HydraConfig.get().job.num}", style="dim")
    try:
        refuse_places(HydraConfig.get().overrides.task)
        _refuse_several_processes(cfg)
        check_start(cfg)
        main(cfg)
    except Exception as error:
        told = explain(error)
        sentence = traceback.format_exc() if told is None else shortened(told)
        (run_dir / "error.txt").write_text(sentence + "\n", encoding="utf-8")
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
        start_in_utf8(main)
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        for category in (UserWarning, FutureWarning, DeprecationWarning):
            warnings.filterwarnings("ignore", category=category, module="lightning")
        wants_trace = os.environ.get("HYDRA_FULL_ERROR") == "1"
        os.environ["HYDRA_FULL_ERROR"] = "1"  # Without it, Hydra prints its own text and exits before us.
        setattr(JobReturn, "return_value", property(_outcome, JobReturn.__dict__["return_value"].fset))  # noqa: B010
        try:
            sys.argv[1:] = flags_first(recalled(sys.argv[1:]))
            given = [_with_plus(argument) for argument in sys.argv[1:]]
            sys.argv[1:] = respelled(sys.argv[1:], sys.argv[0])
            typed.update(zip(sys.argv[1:], given, strict=True))
            check_utf8(sys.argv[1:])
            refuse_words(sys.argv[1:])
            refuse_foreign_files(sys.argv[1:])
            _refuse_mistyped(Path(sys.argv[0]).stem, sys.argv[1:])
            main(*args)
        except KeyboardInterrupt:
            remove_empty(named.values())
            print(stopped(Path(sys.argv[0]).stem, next(iter(named.values()), "")), file=sys.stderr)
            sys.exit(INTERRUPTED)
        except Exception as error:
            remove_empty(named.values())
            sentence = explain(error)
            if wants_trace or sentence is None:
                raise
            print(f"error: {shortened(sentence)}", file=sys.stderr)
            sys.exit(1)

    return run


def _outcome(job: JobReturn) -> Any:
    """What a job returned or raised, without the line that Hydra prints above an error."""
    if job.status == JobStatus.FAILED:
        raise job._return_value
    return job._return_value


def respelled(arguments: Sequence[str], script: str) -> list[str]:
    """Arguments of an entry point as Hydra understands them.

    A method's name stands for its file: ``method=latexblend`` is ``latexblend/train`` in train.py and
    ``latexblend/draw`` elsewhere.

    Args:
        arguments: As typed.
        script: The entry point's file, such as ``train.py``.
    """
    role = "train" if Path(script).stem == "train" else "draw"
    at_home = [_with_new_keys(argument, role, arguments) for argument in map(typed_at_home, arguments)]
    return [addable(_with_plus(_with_role(argument, role))) for argument in at_home]


def addable(override: str) -> str:
    """An override of an argument of a part as one that also adds it: what stands at its default has no key."""
    if override.startswith("hydra.sweeper.params={"):
        return re.sub(rf"(?<=[{{,])(?={ARGUMENT.pattern})", "++", override)
    found = ARGUMENT.match(override)
    return f"++{override}" if found and not set(GIVEN_WHOLE).intersection(found[0].split(".")) else override


def _refuse_mistyped(name: str, arguments: Sequence[str]) -> None:
    """Compose once more than Hydra does: what is mistyped leaves no run folder. The desk's worker says it itself."""
    if name == "desk":
        return
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose(name, list(arguments))
    except Exception:
        # Flags, points of a sweep, or what Hydra refuses in words of its own; a job checks its configuration again.
        return
    check_given(cfg)


def _with_plus(argument: str) -> str:
    return next((plus + argument for start, plus in ADDABLE.items() if argument.startswith(start)), argument)


def _with_role(argument: str, role: str) -> str:
    """``method=A,B`` by the files' names; a name that has a file of its own, or its role already, stays."""
    if not argument.startswith("method="):
        return argument
    typed = argument.removeprefix("method=").split(",")
    names = [METHODS.get(name, name) for name in typed]
    if names != typed:
        _note(argument, f"method={','.join(names)}")
    return f"method={','.join(_file(name, role) for name in names)}"


def _file(name: str, role: str) -> str:
    whole = "/" in name or name in ("", "null") or (CONF / "method" / f"{name}.yaml").exists()
    return name if whole else f"{name}/{role}"


def _with_new_keys(argument: str, role: str, arguments: Sequence[str]) -> str:
    """An old key by its new name; what an evaluation trains on the way is spelt as in train.py."""
    found = re.match(r"([+~]*)(training\.)?method\.([\w.]+)(.*)", argument, re.DOTALL)
    if found is None:
        return argument
    plus, training, key, rest = found.groups("")
    new = _new_key(key, respelling("train" if training else role, arguments))
    if new == key:
        return argument
    _note(f"{training}method.{key}", f"{training}method.{new}")
    return f"{plus}{training}method.{new}{rest}"


def _new_key(key: str, table: Mapping[str, str]) -> str:
    first, dot, inner = key.partition(".")
    return f"{table.get(first, first)}{dot}{inner}"


def _note(old: str, new: str) -> None:
    print(f"note: {old} is now {new}", file=sys.stderr)


OmegaConf.register_new_resolver("fastest_precision", fastest_precision, replace=True)
