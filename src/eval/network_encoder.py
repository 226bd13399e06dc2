"""What scoring needs of an encoder, and the frozen network that most of them are."""

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize

from src.eval.preprocessing import Preprocessing
from src.eval.read_ahead import Picture, read_ahead
from src.eval.weights import fetching

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
        digest = hashlib.sha256()
        for key, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{key} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return f"{self.name}, weights {digest.hexdigest()[:16]}, {self.preprocessing}"

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
