"""What every generator shares: requests are prepared once and drawn in batches, with one set of settings."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

import torch
from PIL import Image

from src.data.request import Identity, Request

AUTO = "auto"
"""The GPU where there is one, else the CPU."""
Prepared = TypeVar("Prepared")
"""A request as a generator draws it, such as a plain prompt, the places of its concepts and a seed."""


class BatchedGenerator(ABC, Generic[Prepared]):
    """Draws requests a batch at a time; subclasses say what a request needs and draw one batch.

    Args:
        batch_size: Images at a time; does not change an image beyond rounding.

    Raises:
        ValueError: If it is not positive.
    """

    def __init__(self, batch_size: int) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; give 1 or more")
        self.batch_size = batch_size

    @abstractmethod
    def identity(self, prompt: str | None = None) -> Identity:
        """What an image depends on beside prompt and seed; see ``src.data.request.Generator``."""

    @abstractmethod
    def prepare(self, request: Request) -> Prepared:
        """What ``draw`` takes.

        Raises:
            ValueError: If the request could not be drawn.
        """

    @abstractmethod
    def draw(self, batch: Sequence[Prepared]) -> Sequence[Image.Image]:
        """One image for each member of a batch."""

    def check(self, requests: Sequence[Request]) -> None:
        """Refuse what could not be drawn.

        Raises:
            ValueError: As ``prepare``.
        """
        for request in requests:
            self.prepare(request)

    @torch.no_grad()
    def sample(self, requests: Sequence[Request]) -> list[Image.Image]:
        """Draw each request with its own seed; the result does not depend on what else is in the batch.

        Raises:
            ValueError: As ``prepare``; nothing was drawn then.
        """
        prepared = [self.prepare(request) for request in requests]
        drawn: dict[int, Image.Image] = {}
        for places in self.batches(requests):
            drawn |= zip(places, self.draw([prepared[at] for at in places]), strict=True)
        return [drawn[at] for at in range(len(requests))]

    def batches(self, requests: Sequence[Request]) -> Iterable[Sequence[int]]:
        """Which requests are drawn together, by their places; as they come unless a subclass knows better."""
        return (range(len(requests))[at] for at in self.slices(len(requests)))

    def slices(self, number: int) -> Iterator[slice]:
        """``number`` things cut into batches."""
        return (slice(start, start + self.batch_size) for start in range(0, number, self.batch_size))


def own_sampling(known: Mapping[str, Any], changes: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a model's calls leave open: what holds for its kind, and what it has of its own.

    Raises:
        ValueError: If there is no such argument.
    """
    check_names("backbone.sampling", changes or {}, known)
    return {**known, **(changes or {})}


def settled(own: Mapping[str, Any], given: Mapping[str, Any] | None) -> dict[str, Any]:
    """A call's settings: what is given, and the model's own where nothing or None is.

    Raises:
        ValueError: If there is no such setting.
    """
    check_names("method.sampling", given or {}, own)
    return {**own, **{name: value for name, value in (given or {}).items() if value is not None}}


def check_names(what: str, given: Iterable[str], known: Collection[str]) -> None:
    """Refuse settings that do not exist.

    Raises:
        ValueError: If there is one.
    """
    for name in given:
        if name not in known:
            raise ValueError(f"{what} has no {name!r}; choose among {', '.join(known)}")


def usable_device(name: str, key: str) -> torch.device:
    """The device of this name.

    Args:
        name: As torch names it, such as ``cuda:1``, or ``auto``.
        key: The setting that named it, for the error.

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
