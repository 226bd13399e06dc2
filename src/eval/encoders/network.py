"""What scoring needs of an encoder: pictures read ahead, one preprocessing for all, a frozen network."""

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize

from src.data.files import weights_fingerprint
from src.data.images import load_image


@contextmanager
def fetching(name: str, otherwise: str = "") -> Iterator[None]:
    """Wrap the construction of a network with its weights.

    Args:
        name: What is loaded.
        otherwise: Advice besides fetching.

    Raises:
        ValueError: If the weights cannot be had.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        # The hub goes on about connections in further sentences.
        reason = str(error).partition("\n")[0].partition(". Please")[0].partition(". Last error")[0].rstrip(".")
        raise ValueError(f"cannot load {name}: {reason}; get its weights once with a network{otherwise}") from error


@dataclass(frozen=True)
class Preprocessing:
    """PIL image to network input; Pillow filters when it shrinks, so that nothing aliases.

    Attributes:
        resize: Length of the shorter side after the bicubic resize.
        crop: Side of the square taken from the centre.
        mean: Per channel, of values in [0, 1].
        std: Per channel.
    """

    resize: int
    crop: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, image: Image.Image) -> Tensor:
        """Float32 ``(3, crop, crop)``."""
        image = image.convert("RGB")
        # The longer side is cut, not rounded, as torchvision does.
        width, height = (int(self.resize * side / min(image.size)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (round((side - self.crop) / 2) for side in (width, height))
        pixels = np.asarray(image.crop((left, top, left + self.crop, top + self.crop)), dtype=np.float32) / 255
        normalised = (pixels - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return torch.from_numpy(np.ascontiguousarray(normalised.transpose(2, 0, 1)))

    def __str__(self) -> str:
        """Everything that could change a number."""
        mean, std = (",".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
        return f"rgb, shorter side {self.resize} bicubic (pil), centre {self.crop}, mean {mean}, std {std}"


BATCH = 64
# Pillow decodes and resizes without Python's lock; more threads than this only hold more memory.
THREADS = min(8, os.cpu_count() or 1)

Picture = Image.Image | str | Path
"""An image, or the file that holds one."""

Result = TypeVar("Result")


def read_ahead(
    function: Callable[[Image.Image], Result], pictures: Iterable[Picture], batch: int = BATCH
) -> Iterator[list[Result]]:
    """What ``function`` makes of each picture, in order and in batches.

    Args:
        function: Called in threads, on upright RGB where the picture is a file.
        pictures: Files are read as ``load_image`` reads them.
        batch: Length of the lists; the last may be shorter.

    Raises:
        ValueError: If a file cannot be read.
    """
    remaining = iter(pictures)
    with ThreadPoolExecutor(THREADS) as pool:

        def start() -> list[Future[Result]]:
            return [pool.submit(_read, function, picture) for picture in islice(remaining, batch)]

        current = start()
        while current:
            coming = start()
            yield [future.result() for future in current]
            current = coming


def _read(function: Callable[[Image.Image], Result], picture: Picture) -> Result:
    return function(picture if isinstance(picture, Image.Image) else load_image(picture))


LOCAL = "local-dir:"


class ImageEncoder(Protocol):
    """What scoring needs to compare images."""

    @property
    def identity(self) -> str:
        """Name, weights and preprocessing in one line: equal identities give comparable numbers."""

    def preprocess(self, image: Image.Image) -> Tensor:
        """Network input ``(3, H, W)``; called from several threads."""

    def encode_pixel_values(self, pixel_values: Tensor) -> Tensor:
        """Unit embeddings, float32 ``(N, D)`` on the CPU, of one batch of network input ``(N, 3, H, W)``."""

    def encode_images(self, images: Iterable[Picture]) -> Tensor:
        """Unit embeddings, float32 ``(N, D)`` on the CPU; files are read in batches."""


class TextImageEncoder(ImageEncoder, Protocol):
    """An image encoder whose space also holds texts."""

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit embeddings, float32 ``(N, D)`` on the CPU."""


class NetworkEncoder(ABC):
    """An image encoder around a frozen network.

    Args:
        name: Library and model, as the identity gives them.
        device: Where it runs.
    """

    def __init__(self, name: str, device: str) -> None:
        self.name, self.device = name, device

    @abstractmethod
    def load(self) -> nn.Module:
        """The network with its weights."""

    @abstractmethod
    def features(self, pixel_values: Tensor) -> Tensor:
        """What stands for an image, ``(N, D)``, of any length."""

    @property
    @abstractmethod
    def preprocessing(self) -> Preprocessing:
        """That of the network's training."""

    @cached_property
    def model(self) -> Any:
        """The network.

        Raises:
            ValueError: If its weights cannot be had.
        """
        # Libraries draw random weights before they read the real ones; whoever asks first must not notice.
        with fetching(self.name, f", or set model={LOCAL}FOLDER"), quiet(), torch.random.fork_rng(devices=[]):
            model = self.load().eval()
        return model.to(self.device)

    @cached_property
    def identity(self) -> str:
        """Name, hash of the weights, preprocessing."""
        return f"{self.name}, weights {weights_fingerprint(self.model.state_dict())}, {self.preprocessing}"

    def preprocess(self, image: Image.Image) -> Tensor:
        """Network input ``(3, H, W)``."""
        return self.preprocessing(image)

    @torch.inference_mode()
    def encode_pixel_values(self, pixel_values: Tensor) -> Tensor:
        """Unit embeddings, float32 ``(N, D)`` on the CPU, of one batch of network input ``(N, 3, H, W)``."""
        return normalize(self.features(pixel_values.to(self.device)).float(), dim=-1).cpu()

    def encode_images(self, images: Iterable[Picture]) -> Tensor:
        """Unit embeddings, float32 ``(N, D)`` on the CPU; files are read in batches.

        Raises:
            ValueError: If there is no image, or a file cannot be read.
        """
        batches = [self.encode_pixel_values(torch.stack(batch)) for batch in read_ahead(self.preprocess, images)]
        if not batches:
            raise ValueError("there are no images to encode")
        return torch.cat(batches)


@contextmanager
def quiet() -> Iterator[None]:
    """open_clip tells the root logger all that it tries; what goes wrong is raised besides."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
