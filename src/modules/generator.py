"""The base of all generators: they prepare each request once and draw in batches, with one set of settings."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from src.data.finite import DRAWN, DRAWN_ADVICE, check_finite
from src.data.known_words import KnownWords, warn_of_unknown
from src.data.request import Identity, Request

AUTO = "auto"
"""Name of a device: the accelerator that torch names (cuda, mps, xpu) if there is one, else the CPU."""
Prepared = TypeVar("Prepared")
"""A request in the form that a generator draws, such as a plain prompt, the positions of its concepts and a seed."""


class BatchedGenerator(ABC, Generic[Prepared]):
    """Draws requests in batches; a subclass prepares a request and draws one batch.

    Args:
        batch_size: Number of images drawn at a time; it does not change an image beyond rounding.
    """

    takes_layouts: ClassVar[bool] = False
    """Whether the method can place concepts."""
    takes_pictures: ClassVar[bool] = False
    """Whether its ``backbone`` draws with ``Backbone.draw``, which can start from a picture."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size

    @abstractmethod
    def identity(self, prompt: str | None = None) -> Identity:
        """Return what an image depends on beside prompt and seed; see ``src.data.request.Generator``."""

    @property
    def known_words(self) -> KnownWords | None:
        """The words that the model was taught, where that is known."""
        return None

    def plain(self, request: Request) -> str:
        """Return all text of a request, as the model reads it."""
        return request.prompt

    @abstractmethod
    def prepare(self, request: Request) -> Prepared:
        """Turn a request into what ``draw`` takes.

        Raises:
            ValueError: If the request cannot be drawn.
        """

    @abstractmethod
    def draw(self, batch: Sequence[Prepared]) -> Sequence[Image.Image]:
        """Draw one image for each member of a batch."""

    def check(self, requests: Sequence[Request]) -> None:
        """Refuse requests that cannot be drawn, and say which words of the others the model was never taught.

        Raises:
            ValueError: As in ``prepare``.
        """
        for request in requests:
            if request.layout and not self.takes_layouts:
                raise ValueError("a layout was given, but this method places no concepts: leave layout out")
            self.prepare(request)
        warn_of_unknown(self.known_words, [self.plain(request) for request in requests])

    @torch.no_grad()
    def sample(self, requests: Sequence[Request]) -> list[Image.Image]:
        """Draw each request with its own seed; the result does not depend on what else is in the batch.

        Raises:
            ValueError: As in ``prepare``, before anything is drawn.
        """
        prepared = [self.prepare(request) for request in requests]
        drawn: dict[int, Image.Image] = {}
        for places in self.batches(requests):
            drawn |= zip(places, self.draw([prepared[at] for at in places]), strict=True)
        return [drawn[at] for at in range(len(requests))]

    def batches(self, requests: Sequence[Request]) -> Iterable[Sequence[int]]:
        """Return the indices of requests that are drawn together; here they keep their order."""
        return (range(len(requests))[at] for at in self.slices(len(requests)))

    def slices(self, number: int) -> Iterator[slice]:
        """Cut a sequence of ``number`` things into batches."""
        return (slice(start, start + self.batch_size) for start in range(0, number, self.batch_size))


def pictures(drawn: np.ndarray) -> list[Image.Image]:
    """Turn pixels in [0, 1], ``(B, H, W, 3)``, into RGB images, as stock pipelines do with ``output_type="pil"``.

    Raises:
        ValueError: If they are not finite; a stock pipeline would show them as black.
    """
    check_finite(torch.from_numpy(drawn), DRAWN, DRAWN_ADVICE)
    return VaeImageProcessor.numpy_to_pil(drawn)


def model_sampling(known: Mapping[str, Any], changes: Mapping[str, Any] | None) -> dict[str, Any]:
    """Complete a model's own settings of drawing with those of its kind.

    Raises:
        ValueError: If there is no such argument.
    """
    check_names("backbone.sampling", changes or {}, known)
    return {**known, **(changes or {})}


def settled(own: Mapping[str, Any], given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Complete the settings of a call: the model's own stand for missing ones and None.

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
    """Return the device of this name.

    Args:
        name: Name of a torch device, such as ``cuda:1``, or ``auto``.
        key: Setting that named it, for the error.

    Raises:
        ValueError: If torch cannot use it on this machine.
    """
    if name == AUTO:
        found = torch.accelerator.current_accelerator(check_available=True)
        name = "cpu" if found is None else found.type
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"{key} is {name!r}, which torch cannot use on this machine; give {key}=cpu, or cuda, mps or xpu where "
            "there is one"
        ) from error
