"""Values of a configuration against the annotations of what they are passed to, before anything is built."""

import inspect
import types
from collections.abc import Iterator, Mapping
from typing import Any, Union, get_args, get_origin, get_type_hints

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

SCALARS: dict[type, tuple[type, ...]] = {bool: (bool,), int: (int,), float: (int, float), str: (str,)}
"""Annotation to the types of YAML values that it accepts; a bool is no number here."""
NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text", types.NoneType: "null"}


def check_types(cfg: DictConfig) -> None:
    """Make sure that every number, text and switch of the parts with a ``_target_`` is one.

    Raises:
        ValueError: With the first value that is not, and what is expected.
    """
    for key, value, annotation in _annotated(OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False), ""):
        if not _fits(value, annotation):
            expected = " or ".join(NAMES[kind] for kind in _kinds(annotation))
            raise ValueError(f"{key} is {value!r}, but {expected} is expected; type {key}=VALUE")


def _annotated(node: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """Key, value and annotation of every argument in a configuration."""
    if isinstance(node, list):
        for number, value in enumerate(node):
            yield from _annotated(value, f"{path}[{number}]")
    if not isinstance(node, dict):
        return
    hints = _hints(str(node["_target_"])) if "_target_" in node else {}
    for name, value in node.items():
        key = f"{path}.{name}" if path else str(name)
        if name in hints:
            yield key, value, hints[name]
        yield from _annotated(value, key)


def _hints(target: str) -> Mapping[str, Any]:
    """Annotations of a constructor or function; none where it is not there, which building it says better."""
    try:
        found = get_object(target)
        return get_type_hints(inspect.getattr_static(found, "__init__") if isinstance(found, type) else found)
    except Exception:
        return {}


def _kinds(annotation: Any) -> list[Any]:
    """Members of a union, or the annotation itself."""
    return list(get_args(annotation)) if get_origin(annotation) in (Union, types.UnionType) else [annotation]


def _fits(value: Any, annotation: Any) -> bool:
    """Whether a YAML value may go there; what is no plain type may always."""
    kinds = _kinds(annotation)
    if value == "???" or any(kind not in NAMES for kind in kinds):
        return True
    return any(value is None if kind is types.NoneType else type(value) in SCALARS[kind] for kind in kinds)
