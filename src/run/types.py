"""A configuration against the constructors that take it: names, types and kinds, before anything is built."""

import inspect
import json
import types
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any, Union, get_args, get_origin, get_type_hints

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from src.run.spelling import CONF, PARTS

OF_HYDRA = {"_target_", "_partial_", "_convert_", "_recursive_", "_args_"}
SETS = ("callbacks", "logger", "llmdiff")
"""Groups that hold parts by name and are none themselves."""

SCALARS: dict[type, tuple[type, ...]] = {bool: (bool,), int: (int,), float: (int, float), str: (str,)}
"""Annotation to the types of YAML values that it accepts; a bool is no number here."""
NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text", types.NoneType: "null"}


def check_types(cfg: DictConfig) -> None:
    """Make sure that parts with a ``_target_`` take all their keys, and that numbers, texts and switches are such.

    Raises:
        ValueError: With the first key or value that does not fit, and what is expected.
    """
    refuse_unknown(cfg)
    for key, value, annotation in _annotated(OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False), ""):
        if isinstance(value, dict) and "_target_" in value:
            _check_kind(key, value["_target_"], annotation)
        if not _fits(value, annotation):
            expected = " or ".join(NAMES[kind] for kind in _kinds(annotation))
            raise ValueError(f"{key} is {value!r}, but {expected} is expected; type {key}=VALUE")


def takes(cfg: DictConfig, key: str) -> bool:
    """Whether a configuration has this key, or the part that it belongs to takes it."""
    part = OmegaConf.select(cfg, key.rpartition(".")[0])
    target = part.get("_target_") if isinstance(part, DictConfig) else None
    return OmegaConf.select(cfg, key) is not None or key.rpartition(".")[2] in options(target or "")


def refuse_unknown(cfg: DictConfig) -> None:
    """Refuse keys that nothing takes: below a part that was not chosen, of a part of another name, and in a part.

    Raises:
        ValueError: With the first such key, and the nearest one or all that may stand there.
    """
    tree: Any = OmegaConf.to_container(cfg, resolve=False)
    for group in PARTS:
        node = tree.get(group) or {}
        if group not in SETS and node and "_target_" not in node:
            members = sorted({path.relative_to(CONF / group).parts[0] for path in (CONF / group).rglob("*.yaml")})
            names = ", ".join(member.removesuffix(".yaml") for member in members)
            key, _ = _innermost(group, node)
            raise ValueError(f"there is no key {key}, as no {group} was chosen; add {group}=NAME, one of: {names}")
        for name, part in node.items() if group in SETS else ():
            if part and "_target_" not in part:
                raise ValueError(_unknown(tree, group, name, part, [other for other in node if other != name]))
    for path, part in _parts(tree):
        taken, hints = options(part["_target_"]), _hints(part["_target_"])
        for name in [name for name in part if name not in OF_HYDRA and taken]:
            # Written below a reference such as ``method.backbone``, a key has replaced the whole part.
            is_torn = isinstance(part[name], dict) and "_target_" not in part[name] and _is_part(hints.get(name, Any))
            if is_torn or name not in taken:
                raise ValueError(_unknown(tree, path, name, part[name], [] if is_torn else list(taken)))


def _unknown(tree: Any, parent: str, name: str, value: Any, choices: list[str]) -> str:
    """The sentence for a name that is none of what may stand there."""
    key, value = _innermost(f"{parent}.{name}", value)
    close = get_close_matches(name, choices, n=1)
    near = [key.replace(f"{parent}.{name}", f"{parent}.{found}", 1) for found in close]
    elsewhere = [f"{path}.{option}" for path, part in _parts(tree) for option in options(part["_target_"])]
    alike = [path for path in [*tree, *elsewhere] if path.rpartition(".")[2] == key.rpartition(".")[2]]
    told = "" if isinstance(value, dict) else f"={value if isinstance(value, str) else json.dumps(value)}"
    advice = [f"did you mean {path}{told}?" for path in [*near, *alike]]
    otherwise = f"{parent} takes: {', '.join(choices)}" if choices else f"{parent}.{name} is no part of its own here"
    return f"there is no key {key}; {[*advice, otherwise][0]}"


def _innermost(key: str, value: Any) -> tuple[str, Any]:
    """A key as it was typed, down to its value."""
    while isinstance(value, dict) and value and "_target_" not in value:
        name, value = next(iter(value.items()))
        key = f"{key}.{name}"
    return key, value


def _parts(node: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every node with a ``_target_`` and its key."""
    if isinstance(node, dict) and "_target_" in node:
        yield path, node
    inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, value in inner:
        yield from _parts(value, f"{path}[{name}]" if isinstance(node, list) else f"{path}.{name}".lstrip("."))


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


def _check_kind(key: str, target: str, annotation: Any) -> None:
    """Refuse a part of the wrong kind, such as a UNet for a method on scale-wise models, before weights are read."""
    found, wanted = _built(target), [kind for kind in _kinds(annotation) if _is_ours(kind)]
    if found is None or not wanted or issubclass(found, tuple(wanted)):
        return
    group = key.rpartition(".")[2]
    fitting = [name for name, other in _choices(group).items() if other and issubclass(other, tuple(wanted))]
    names = " or ".join(kind.__name__ for kind in wanted)
    raise ValueError(f"{key} is a {found.__name__}, but a {names} is needed; choose {group}={', '.join(fitting)}")


def _is_ours(kind: Any) -> bool:
    """Whether an annotation is a class of this project that must be inherited from."""
    return isinstance(kind, type) and kind.__module__.startswith("src.") and not getattr(kind, "_is_protocol", False)


def _is_part(annotation: Any) -> bool:
    """Whether no kind of a union is a mapping: what goes there has a ``_target_``."""
    kinds = [get_origin(kind) or kind for kind in _kinds(annotation)]
    return all(isinstance(kind, type) and not issubclass(kind, Mapping) and kind not in (Any, object) for kind in kinds)


def _built(target: str) -> type | None:
    """The class of what a ``_target_`` builds: itself, the one whose classmethod it is, or what a function returns."""
    try:
        found = get_object(target)
        built = getattr(found, "__self__", found)
        built = built if isinstance(built, type) else get_type_hints(found).get("return")
    except Exception:
        return None
    return built if isinstance(built, type) else None


def _choices(group: str) -> dict[str, type | None]:
    """Members of a group of ``conf/`` with a ``_target_``, and what each builds."""
    targets = {
        path.stem: OmegaConf.select(OmegaConf.load(path), "_target_") for path in sorted((CONF / group).glob("*.yaml"))
    }
    return {name: _built(target) for name, target in targets.items() if target}


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


def options(target: str) -> dict[str, Any]:
    """What a constructor or function takes by name, to its default, which is ``inspect.Parameter.empty`` without one.

    Empty for what takes any name, and for what is not there: building it says that better.
    """
    try:
        parameters = inspect.signature(get_object(target)).parameters.values()
    except Exception:
        return {}
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    return {} if takes_any else {parameter.name: parameter.default for parameter in parameters}
