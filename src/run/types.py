"""A configuration against the constructors that take it: names, types and kinds, before anything is built."""

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from functools import partial
from typing import Any, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf

from src.run.other_programs import of_other_programs
from src.run.others import RANGES
from src.run.targets import CONF, located, refuse_foreign
from src.run.tasks import TASKS, Paths
from src.run.values import described, kinds, misfit, parted

PARTS = (
    *("method", "backbone", "data", "protocol", "callbacks", "trainer", "metrics", "suite", "hpo", "llm", "llmdiff"),
    "logger",
)
"""Groups that parts are built from. An argument that stands at its default has no key there: the command line adds it,
and a name that no constructor takes is refused."""
OF_HYDRA = {"_target_", "_partial_", "_convert_", "_recursive_", "_args_"}
SETS = ("callbacks", "logger", "llmdiff")
"""Groups that hold parts by name and are none themselves."""


def check_types(cfg: DictConfig) -> None:
    """Make sure that a task and the parts with a ``_target_`` take all their keys, in type and range.

    Raises:
        ValueError: With the first key or value that does not fit, and what is expected.
    """
    check_given(cfg)
    _check_values(OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False))


def check_given(cfg: DictConfig) -> None:
    """Like ``check_types``, but for values that name other keys: nothing is resolved, and no run folder is chosen.

    Raises:
        ValueError: As there.
    """
    refuse_unknown(cfg)
    _check_values(OmegaConf.to_container(cfg, resolve=False))


def _check_values(tree: Any) -> None:
    refuse_foreign(tree)
    for key, value, annotation in annotated(tree, ""):
        if isinstance(value, dict) and "_target_" in value:
            _check_kind(key, value["_target_"], annotation)
        if (sentence := misfit(key, value, annotation)) is not None:
            raise ValueError(_missing_part(key, value, annotation) or sentence)


def takes(cfg: DictConfig, key: str) -> bool:
    """Whether a configuration has this key, or the part that it belongs to takes it."""
    parent, _, name = key.rpartition(".")
    part = OmegaConf.select(cfg, parent) if parent else cfg
    return isinstance(part, DictConfig) and (name in part or name in options(str(part.get("_target_") or "")))


def refuse_unknown(cfg: DictConfig) -> None:
    """Refuse keys that nothing takes: below a part that was not chosen, of a part of another name, and in a part.

    Raises:
        ValueError: With the first such key, and the nearest one or all that may stand there; or if a part is none that
            a configuration may build.
    """
    tree: Any = OmegaConf.to_container(cfg, resolve=False)
    refuse_foreign(tree)
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
    if "task" in tree and tree["task"] not in TASKS:
        raise ValueError(f"task is {tree['task']!r}, but it is the name of the program that runs; leave it out")
    for name, value in (tree.get("paths") or {}).items() if "task" in tree else ():
        if name not in _hints_of(Paths):
            raise ValueError(_unknown(tree, "paths", name, value, list(_hints_of(Paths))))
    for name, value in tree.items() if "task" in tree else ():
        if not _is_read(name, tree):
            raise ValueError(_unknown(tree, "", name, value, [*_hints_of(TASKS[tree["task"]]), *tree]))
    for path, part in parts(tree):
        taken, hints = options(part["_target_"]), _hints(part["_target_"])
        for name in [name for name in part if name not in OF_HYDRA and taken]:
            # Written below a reference such as ``method.backbone``, a key has replaced the whole part.
            is_torn = isinstance(part[name], dict) and "_target_" not in part[name] and _is_part(hints.get(name, Any))
            if is_torn or name not in taken:
                raise ValueError(_unknown(tree, path, name, part[name], [] if is_torn else list(taken)))


def _is_read(name: str, tree: Mapping[str, Any]) -> bool:
    """Whether the task, a part or another key reads this key at the top."""
    own = {*_hints_of(TASKS[tree["task"]]), *PARTS, "paths", "hydra", "sweep"}
    others = json.dumps({key: value for key, value in tree.items() if key != name}, default=str)
    return name in own or re.search(rf"\$\{{[^}}]*\b{re.escape(name)}\b", others) is not None


def _unknown(tree: Any, parent: str, name: str, value: Any, choices: list[str]) -> str:
    """The sentence for a name that is none of what may stand there."""
    prefix = f"{parent}." if parent else ""
    key, value = _innermost(f"{prefix}{name}", value)
    close = get_close_matches(name, [choice for choice in choices if choice != name], n=1)
    near = [key.replace(f"{prefix}{name}", f"{prefix}{found}", 1) for found in close]
    elsewhere = [f"{path}.{option}" for path, part in parts(tree) for option in options(part["_target_"])]
    alike = [path for path in [*tree, *elsewhere] if path != key and path.rpartition(".")[2] == key.rpartition(".")[2]]
    told = "" if isinstance(value, dict) else f"={value if isinstance(value, str) else json.dumps(value)}"
    common = None if parent else of_other_programs(name, told, tree["task"], partial(takes, OmegaConf.create(tree)))
    if common:
        return f"there is no key {key}; type {common}"
    advice = [f"did you mean {path}{told}?" for path in [*near, *alike]]
    otherwise = f"{parent or 'this'} takes: {', '.join(choices)}"
    if not parent or not choices:
        otherwise = f"{prefix}{name} is no part of its own here" if parent else "nothing reads it"
    return f"there is no key {key}; {[*advice, otherwise][0]}"


def _innermost(key: str, value: Any) -> tuple[str, Any]:
    """A key as it was typed, down to its value."""
    while isinstance(value, dict) and value and "_target_" not in value:
        name, value = next(iter(value.items()))
        key = f"{key}.{name}"
    return key, value


def parts(node: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every node with a ``_target_`` and its key."""
    if isinstance(node, dict) and "_target_" in node:
        yield path, node
    inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, value in inner:
        yield from parts(value, f"{path}[{name}]" if isinstance(node, list) else f"{path}.{name}".lstrip("."))


def annotated(node: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """Key, value and annotation of every argument in a configuration."""
    if isinstance(node, list):
        for number, value in enumerate(node):
            yield from annotated(value, f"{path}[{number}]")
    if not isinstance(node, dict):
        return
    hints = _hints(str(node["_target_"])) if "_target_" in node else {}
    if not path and node.get("task") in TASKS:
        hints = _hints_of(TASKS[node["task"]])
    elif path == "paths":
        hints = _hints_of(Paths)
    for name, value in node.items():
        key = f"{path}.{name}" if path else str(name)
        if name in hints:
            yield key, value, hints[name]
        yield from annotated(value, key)


def _check_kind(key: str, target: str, annotation: Any) -> None:
    """Refuse a part of the wrong kind, such as a UNet for a method on scale-wise models, before weights are read."""
    found, wanted = built(target), [kind for kind in kinds(annotation) if _is_ours(kind)]
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
    plain = [parted(kind)[0] for kind in kinds(annotation)]
    found = [get_origin(kind) or kind for kind in plain]
    return all(isinstance(kind, type) and not issubclass(kind, Mapping) and kind not in (Any, object) for kind in found)


def built(target: str) -> type | None:
    """The class of what a ``_target_`` builds: itself, the one whose classmethod it is, or what a function returns."""
    try:
        found = located(target)
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
    return {name: built(target) for name, target in targets.items() if target}


def _hints(target: str) -> Mapping[str, Any]:
    """Annotations of a constructor or function; none where it is not there, which building it says better."""
    try:
        found = located(target)
        hints = _hints_of(inspect.getattr_static(found, "__init__") if isinstance(found, type) else found)
    except Exception:
        return {}
    return {**hints, **RANGES.get(target, {})}


def _hints_of(found: Any) -> dict[str, Any]:
    return get_type_hints(found, include_extras=True)


def _missing_part(key: str, value: Any, annotation: Any) -> str | None:
    """The sentence for a number, a text or nothing in place of a part, such as ``method.backbone=3``."""
    wanted = [kind for kind in kinds(annotation) if _is_ours(kind)]
    if not wanted or isinstance(value, dict):
        return None
    group = key.rpartition(".")[2]
    choices = ", ".join(_choices(group)) if group in PARTS else ""
    expected = " or ".join(map(described, kinds(annotation)))
    advice = f"choose {group}={choices}" if choices else f"see how conf/{key.partition('.')[0]} writes it"
    return f"{key} is {value!r}, but {expected} is expected; {advice}"


def options(target: str) -> dict[str, Any]:
    """What a constructor or function takes by name, to its default, which is ``inspect.Parameter.empty`` without one.

    Empty for what takes any name, and for what is not there: building it says that better.
    """
    try:
        parameters = inspect.signature(located(target)).parameters.values()
    except Exception:
        return {}
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    return {} if takes_any else {parameter.name: parameter.default for parameter in parameters}
