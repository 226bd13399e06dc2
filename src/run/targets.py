"""What a configuration may build: a short list of packages, checked before anything of it is imported or called."""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import hydra.utils
import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf

CONF = Path(__file__).parents[2] / "conf"

PACKAGES = ("src", "torch.optim", "lightning")
"""Packages whose classes may be built. Of functions, which do things, only those that a file of ``conf/`` names."""
KEY = "_target_"


def build(node: Any, **arguments: Any) -> Any:
    """Build what a part of a configuration describes; None and an empty part are returned as they are.

    Raises:
        ValueError: If the part or one inside of it names what may not be built; nothing is built then.
    """
    refuse_foreign(node)
    return hydra.utils.instantiate(node, **{"_convert_": "all", **arguments})


def located(target: str) -> Any:
    """Import the class or function of this name.

    Raises:
        ValueError: If its name, or what it stands for, may not be built.
        Exception: Whatever its import raises, if there is no such class.
    """
    _refuse_name(target, KEY)
    named = hydra.utils.get_object(target)
    maker = getattr(named, "__self__", named)
    # A module lends the names of what it imports, as in src.data.files.os.system.
    is_ours = _is_in(str(getattr(maker, "__module__", "")), PACKAGES)
    if not is_ours or not isinstance(maker, type) and target not in _functions():
        raise ValueError(_refusal(target, KEY))
    return named


def refuse_foreign(node: Any, path: str = "") -> None:
    """Refuse a configuration in which a ``_target_``, however deep, is none that may be built.

    Raises:
        ValueError: With the first one.
    """
    if isinstance(node, DictConfig | ListConfig):
        node = OmegaConf.to_container(node, resolve=True, throw_on_missing=False)
    for key, target in _targets(node, path):
        _refuse_name(target, key)
        try:
            located(target)
        except ValueError:
            raise ValueError(_refusal(target, key)) from None
        except Exception:
            # Of a package that may be built, but not there: who builds it says that better.
            continue


def refuse_foreign_files(arguments: Sequence[str]) -> None:
    """Refuse what Hydra itself would build or read before a job can look at its configuration.

    Args:
        arguments: The command line, without the script.

    Raises:
        ValueError: If it names callbacks of Hydra or a pickled configuration, or a file of a folder that it names
            builds what may not be built.
    """
    for word, following in zip(arguments, [*arguments, ""][1:], strict=True):
        option, _, value = word.partition("=")
        if re.match(r"[+~]*hydra(\.callbacks|/callbacks|=)", word):
            raise ValueError(f"{word[:80]} is refused: Hydra would build it before this program can look at it")
        if option == "--experimental-rerun":
            raise ValueError("--experimental-rerun is refused: it unpickles a file, which can run anything")
        if option in FOLDERS:
            for path in sorted(Path(value or following).rglob("*.y*ml")):
                _refuse_file(path)


FOLDERS = ("--config-dir", "-cd", "--config-path", "-cp")
"""Options of Hydra that name a folder of further files."""


def _refuse_file(path: Path) -> None:
    try:
        node = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return  # Hydra says it if this file is wanted.
    for key, target in _targets(node, ""):
        if not (isinstance(target, str) and _is_in(target, ("hydra_plugins", "hydra._internal"))):
            _refuse_name(target, f"{path}: {key}")


def _refuse_name(target: Any, key: str) -> None:
    if not isinstance(target, str) or not _is_in(target, PACKAGES):
        raise ValueError(_refusal(target, key))


def _refusal(target: Any, key: str) -> str:
    return (
        f"{key}={str(target)[:80]} may not be built; a configuration builds classes of {', '.join(PACKAGES)}, and "
        "functions that conf/ names"
    )


def _is_in(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def _targets(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Key and value of every ``_target_``."""
    if isinstance(node, Mapping):
        if KEY in node:
            yield f"{path}.{KEY}".lstrip("."), node[KEY]
        for name, value in node.items():
            yield from _targets(value, f"{path}.{name}".lstrip("."))
    elif isinstance(node, list | tuple):
        for number, value in enumerate(node):
            yield from _targets(value, f"{path}[{number}]")


@cache
def _functions() -> set[str]:
    """Every ``_target_`` of ``conf/``."""
    files = (yaml.safe_load(path.read_text(encoding="utf-8")) for path in CONF.rglob("*.yaml"))
    return {target for file in files for _, target in _targets(file, "")}
