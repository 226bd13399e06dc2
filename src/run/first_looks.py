"""Look at what a configuration names, files first, before any part of it is built."""

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from omegaconf import DictConfig, OmegaConf

from src.data.first_looks import FirstLook
from src.run.types import annotated, built, parts
from src.run.values import kinds, parted


def look_first(cfg: DictConfig, made_later: bool = False) -> None:
    """Refuse files that are missing, damaged or of another kind, and names that nothing can carry.

    A class looks at arguments whose meaning depends on others, or on itself, by a class method ``first_look``.

    Args:
        cfg: A configuration whose types were checked.
        made_later: Whether what is not given yet is made before it is needed, as by a suite.

    Raises:
        ValueError: With the first such value.
    """
    tree = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False)
    for _, value, annotation in annotated(tree, ""):
        for one, mark in _marked(value, annotation):
            if isinstance(one, str) and one != "???":
                mark.look(one)
            elif one is None and mark.missing and not made_later:
                raise ValueError(mark.missing)
    for _, part in parts(tree):
        if look := getattr(built(part["_target_"]), "first_look", None):
            look(part)


def _marked(value: Any, annotation: Any) -> Iterator[tuple[Any, FirstLook]]:
    """Every value inside of this one that is marked, and its mark."""
    plain, marks = parted(annotation)
    yield from ((value, mark) for mark in marks if isinstance(mark, FirstLook))
    members = kinds(plain)
    if len(members) > 1:
        for member in members:
            yield from _marked(value, member)
    elif isinstance(value, list | Mapping) and get_args(plain):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _marked(inner, get_args(plain)[-1])
