"""Whether a value of a configuration may stand where an annotation is, and the sentence if it may not."""

import inspect
import json
import math
import re
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, GroupedMetadata, Gt, Le, Lt, MinLen, MultipleOf

from src.data.ranges import MAY_BE_INFINITE, Entries, Spelled

SCALARS: dict[type, tuple[type, ...]] = {bool: (bool,), int: (int,), float: (int, float), str: (str,), Path: (str,)}
"""Annotation to the types of YAML values that it accepts; a bool is no number here."""
NAMES = {
    **{bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"},
    types.NoneType: "null",
}
WORDS = {Gt: "above {}", Ge: "of at least {}", Lt: "below {}", Le: "of at most {}", MultipleOf: "a multiple of {}"}
SHOWN = 60
"""Characters of a value that a sentence repeats."""


def misfit(key: str, value: Any, annotation: Any) -> str | None:
    """Say what is wrong with a value, or return None.

    What YAML cannot write, such as an object, may stand anywhere; so may a value that is still missing, or that names
    another key.

    Args:
        key: Where it stands.
        value: As in YAML.
        annotation: What the argument is annotated with, and the ranges that ``Annotated`` adds.
    """
    if fits(value, annotation):
        return None
    for kind in kinds(annotation):
        # The innermost value that is wrong says more than the whole.
        inner = _entries(value, kind)
        for name, entry, wanted in inner or ():
            if (sentence := misfit(f"{key}{name}", entry, wanted)) is not None:
                return sentence
    expected = " or ".join(dict.fromkeys(described(kind) for kind in kinds(annotation)))
    return f"{key} is {shown(value)}, but {expected} is expected; type {_typed(key, value, annotation)}"


def fits(value: Any, annotation: Any) -> bool:
    """Whether a YAML value may go there; numbers must be finite, unless the annotation says otherwise."""
    is_open = isinstance(value, str) and (value == "???" or "${" in value)
    return is_open or any(_fits(value, kind) for kind in kinds(annotation))


def _fits(value: Any, kind: Any) -> bool:
    plain, ranges = parted(kind)
    if len(kinds(plain)) > 1:
        return fits(value, plain) and all(_within(value, one) for one in ranges)
    if isinstance(value, float) and (math.isnan(value) or (math.isinf(value) and MAY_BE_INFINITE not in ranges)):
        return False
    if plain is types.NoneType:
        return value is None
    if get_origin(plain) is Literal:
        return any(value == choice and type(value) is type(choice) for choice in get_args(plain))
    if plain in SCALARS:
        return type(value) in SCALARS[plain] and all(_within(value, one) for one in ranges)
    if (entries := _entries(value, kind)) is not None:
        return all(fits(entry, wanted) for _, entry, wanted in entries) and all(_within(value, one) for one in ranges)
    if _is_container(plain):
        return isinstance(value, dict) and "_target_" in value
    # A class: a part of the configuration builds it, and no number or text does.
    return (
        not inspect.isclass(plain) or plain in (Any, object) or not isinstance(value, str | int | float | list | None)
    )


def _entries(value: Any, kind: Any) -> list[tuple[str, Any, Any]] | None:
    """What a list or mapping holds, each with its place and annotation; None if the value is none of this kind."""
    plain, ranges = parted(kind)
    origin, inner = get_origin(plain) or plain, get_args(plain)
    if not _is_container(plain):
        return None
    if issubclass(origin, Mapping):
        if not isinstance(value, dict) or "_target_" in value:
            return None
        declared = {name: wanted for one in ranges if isinstance(one, Entries) for name, wanted in one.kinds.items()}
        every = inner[1] if len(inner) > 1 else Any
        return [(f".{name}", entry, declared.get(name, every)) for name, entry in value.items()]
    if not isinstance(value, list):
        return None
    fixed = origin is tuple and inner and inner[-1] is not Ellipsis
    if fixed and len(inner) != len(value):
        return None
    each = inner if fixed else [inner[0] if inner else Any] * len(value)
    return [(f"[{number}]", *both) for number, both in enumerate(zip(value, each, strict=True))]


def _is_container(plain: Any) -> bool:
    origin = get_origin(plain) or plain
    return inspect.isclass(origin) and origin is not str and issubclass(origin, Mapping | Sequence)


def parted(kind: Any) -> tuple[Any, list[Any]]:
    """An annotation without its ranges, and these one by one."""
    if get_origin(kind) is not Annotated:
        return kind, []
    plain, *given = get_args(kind)
    ranges = [one for each in given for one in (each if isinstance(each, GroupedMetadata) else [each])]
    return plain, ranges


def kinds(annotation: Any) -> list[Any]:
    """Members of a union, or the annotation itself."""
    return list(get_args(annotation)) if get_origin(annotation) in (Union, types.UnionType) else [annotation]


def _within(value: Any, limit: Any) -> bool:
    match limit:
        case Gt(gt):
            return value > gt
        case Ge(ge):
            return value >= ge
        case Lt(lt):
            return value < lt
        case Le(le):
            return value <= le
        case MinLen(least):
            return len(value) >= least
        case MultipleOf(step):
            return value % step == 0
        case Spelled(pattern=pattern):
            return re.fullmatch(pattern, value) is not None
    return True


def described(kind: Any) -> str:
    """An annotation in words, such as "a whole number of at least 1"."""
    plain, ranges = parted(kind)
    if len(kinds(plain)) > 1:
        return " or ".join(described(one) for one in kinds(plain))
    if get_origin(plain) is Literal:
        return "one of " + ", ".join(map(str, get_args(plain)))
    if _is_container(plain):
        if issubclass(get_origin(plain) or plain, Mapping):
            return "a value for each name"
        inner = [one for one in get_args(plain) if one not in (Ellipsis, Any)]
        return f"a list of {' and '.join(dict.fromkeys(map(described, inner)))}" if inner else "a list"
    limits = {type(one): getattr(one, one.__match_args__[0]) for one in ranges if type(one) in WORDS}
    both = limits.keys() >= {Ge, Le}
    told = [f"from {limits.pop(Ge)} to {limits.pop(Le)}"] if both else []
    told += [WORDS[kind].format(limit) for kind, limit in limits.items()]
    told += [one.words for one in ranges if isinstance(one, Spelled)]
    name = NAMES.get(plain) or f"a {getattr(plain, '__name__', plain)}"
    return f"{name} {' and '.join(told)}".strip()


def shown(value: Any) -> str:
    """A value as a sentence repeats it: the first characters of what is long."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(text)} characters)"


def _typed(key: str, value: Any, annotation: Any) -> str:
    """How to type what is expected."""
    plain = [get_origin(parted(kind)[0]) or parted(kind)[0] for kind in kinds(annotation)]
    if any(inspect.isclass(kind) and issubclass(kind, Mapping) for kind in plain) and not isinstance(value, dict):
        return f"{key}.NAME=VALUE"
    if isinstance(value, bool | int | float) and str in plain and "\n" not in str(value):
        return f"\"{key}='{json.dumps(value)}'\""
    return f"{key}=VALUE"
