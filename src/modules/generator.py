"""What every generator shares."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch


def own_sampling(known: Mapping[str, Any], changes: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a model's calls leave open: what holds for its kind, and what it has of its own.

    Raises:
        ValueError: If there is no such argument.
    """
    check_names("backbone.sampling", changes or {}, known)
    return {**known, **(changes or {})}


def settled(own: Mapping[str, Any], **given: Any) -> dict[str, Any]:
    """A call's arguments; None stands for the model's own."""
    return {name: own[name] if value is None else value for name, value in given.items()}


def check_names(what: str, given: Iterable[str], known: Collection[str]) -> None:
    """Refuse settings that do not exist.

    Raises:
        ValueError: If there is one.
    """
    for name in given:
        if name not in known:
            raise ValueError(f"{what} has no {name!r}; choose among {', '.join(known)}")


AUTO = "auto"
"""The GPU where there is one, else the CPU."""


def usable_device(name: str, key: str) -> torch.device:
    """The device of this name.

    Args:
        name: As torch names it, such as ``cuda:1``, or ``auto``.
        key: What set it, for the error.

    Raises:
        ValueError: If torch cannot use it on this machine.
    """
    if name == AUTO:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"{key} is {name!r}, which torch cannot use on this machine; give {key}=cpu, or cuda where there is a GPU"
        ) from error
