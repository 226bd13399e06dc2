"""Paths that begin at home: a ``~`` wherever a user types it, and what the checkout ships, wherever the user stands."""

import re
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig

from src.data.commands import override
from src.run.targets import CONF

_HOME = re.compile(r"~[\w.-]*(?:/.*)?", re.DOTALL)
_AFTER = re.compile(r"(?<=[\[,:=])(~[\w.-]*/[^,\]}]*|~(?=[,\]}]|$))")
"""An unquoted path in an override, alone or in a list, which Hydra's grammar does not take."""


_SHIPPED = re.compile(r"(local-dir:)?(world/[^\s*]+)")
"""A file or folder that comes with the checkout, as configurations name it."""


def shipped(path: str) -> str:
    """Name what the checkout ships by its whole path, where the folder that the user stands in does not hold it."""
    found = _SHIPPED.fullmatch(path)
    if found is None or Path(found[2]).exists() or not (whole := CONF.parent / found[2]).exists():
        return path
    return f"{found[1] or ''}{whole}"


def at_home(path: str) -> str:
    """Expand the ``~`` at the start of a path; any other text stays."""
    if not _HOME.fullmatch(path):
        return path
    try:
        return str(Path(path).expanduser())
    except RuntimeError:  # There is no such user.
        return path


def typed_at_home(argument: str) -> str:
    """Expand ``~`` in an override such as ``data.instance_dir=~/photos`` or ``style=[~/a.png,~/b.png]``."""
    if re.search(r"['\"]", argument):
        return argument
    return _AFTER.sub(lambda found: override("", at_home(found[0])).removeprefix("="), argument)


def expand_home(cfg: DictConfig | ListConfig) -> None:
    """Expand ``~`` and what is shipped in every text of a configuration, in place.

    ``paths.root`` stays as it is written: the folder of the run was made of it, and is remembered by it. So does the
    place that a pretraining of the world writes to.
    """
    keys: Any = cfg if isinstance(cfg, DictConfig) else range(len(cfg))
    for key in keys:
        node: Any = cfg._get_node(key)
        if isinstance(node, DictConfig | ListConfig):
            if not node._is_none() and not node._is_missing() and not node._is_interpolation():
                expand_home(node)
        elif isinstance(node._value(), str) and node._get_full_key(None) != "paths.root":
            path = at_home(node._value())
            node._set_value(path if key == "export_dir" else shipped(path))
