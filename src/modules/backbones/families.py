"""Which kinds of backbones there are, and which of them takes a pipeline: known from its ``model_index.json`` alone."""

import pkgutil
from pathlib import Path
from typing import Any

import diffusers

from src.data.model_index import read_model_index

FOLDER = Path(__file__).parent


def check_family(folder: Path, name: str, kind: Any) -> None:
    """Refuse a pipeline that a kind of backbone does not take, before its weights are read.

    Args:
        folder: Folder of the pipeline.
        name: Name of the model, for the error.
        kind: Class of backbone, with the ``pipelines`` that it takes.

    Raises:
        ValueError: If it takes another; the text says which kind takes this one, or how to add one.
    """
    held = read_model_index(folder)["_class_name"]
    if _takes(kind, held):
        return
    wanted = " or ".join(one.__name__ for one in kind.pipelines)
    others = {one.option or "sdxl": one for one in families()}
    fitting = next((option for option, one in others.items() if _takes(one, held)), None)
    known = ", ".join(
        sorted({one.__name__.removesuffix("Pipeline") for each in others.values() for one in each.pipelines})
    )
    advice = (
        f"choose backbone={fitting}"
        if fitting
        else f"no backbone takes that: there are {known}, and docs/adding.md says how to add one"
    )
    raise ValueError(f"{name} holds a {held}, but {kind.__name__} takes a {wanted}; {advice}")


def families() -> list[Any]:
    """Return every kind of backbone, in the order of their modules."""
    for module in sorted(one.name for one in pkgutil.iter_modules([str(FOLDER)])):
        pkgutil.resolve_name(f"{__package__}.{module}")  # Its import tells of its classes.
    waiting, found = [pkgutil.resolve_name(f"{__package__}.base:Backbone")], []
    while waiting:
        subclasses = waiting.pop(0).__subclasses__()
        found += [
            one for one in subclasses if one.__module__.startswith(f"{__package__}.") and "pipelines" in vars(one)
        ]
        waiting += subclasses
    return sorted(found, key=lambda one: one.__module__)


def _takes(kind: Any, held: str) -> bool:
    pipeline = getattr(diffusers, held, None)
    named = (*(one.__name__ for one in kind.pipelines), *getattr(kind, "taken_apart", ()))
    return held in named or isinstance(pipeline, type) and issubclass(pipeline, kind.pipelines)
