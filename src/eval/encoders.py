"""Images and texts to unit embeddings. One preprocessing path, and an identity that goes with every number."""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import open_clip
import timm
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize

BATCH = 64
LOCAL = "local-dir:"


class ImageEncoder(Protocol):
    """What a protocol needs to compare images."""

    @property
    def identity(self) -> str:
        """Name, weights and preprocessing in one line: equal identities give comparable numbers."""

    def encode_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Unit embeddings, float32 ``(N, D)`` on the CPU."""


class TextImageEncoder(ImageEncoder, Protocol):
    """An image encoder whose space also holds texts."""

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit embeddings, float32 ``(N, D)`` on the CPU."""


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


class OpenClipEncoder:
    """Any open_clip model, by its name there or as ``local-dir:FOLDER``.

    Args:
        model: Such as ``local-dir:world/clip`` or ``ViT-B-32-quickgelu``.
        pretrained: Tag or file of the weights; needless for a folder or ``hf-hub:``.
        device: Where it runs.

    Raises:
        ValueError: If there are no weights, or their activation is not the model's.
    """

    def __init__(self, model: str, pretrained: str | None = None, device: str = "cpu") -> None:
        _check_folder(model, "open_clip_config.json")
        if ":" not in model:
            _check_weights(model, pretrained)
        with _errors_only():
            self.model = open_clip.create_model(
                model, pretrained=pretrained, device=device, require_pretrained=True, weights_only=True
            ).eval()
            self.tokenizer = open_clip.get_tokenizer(model)
        self.name = f"open_clip {model}" + (f" {pretrained}" if pretrained else "")
        config = self.model.visual.preprocess_cfg
        side = config["size"] if isinstance(config["size"], int) else config["size"][0]
        self.preprocessing = Preprocessing(side, side, tuple(config["mean"]), tuple(config["std"]))

    @cached_property
    def identity(self) -> str:
        """Name, hash of the weights, preprocessing."""
        return _identity(self.name, self.model, self.preprocessing)

    def encode_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Unit embeddings, float32 ``(N, D)`` on the CPU."""
        return _encode(self.model.encode_image, self.model, images, self.preprocessing)

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit embeddings, float32 ``(N, D)`` on the CPU; each text is encoded once."""
        unique = list(dict.fromkeys(texts))
        device = next(self.model.parameters()).device
        chunks = [self.model.encode_text(self.tokenizer(chunk).to(device)) for chunk in _chunks(unique)]
        features = normalize(torch.cat(chunks).float(), dim=-1).cpu()
        return features[[unique.index(text) for text in texts]]


class TimmEncoder:
    """Pooled features of any timm model, by its name there or as ``local-dir:FOLDER``.

    Args:
        model: Such as ``local-dir:world/dino`` or ``vit_small_patch16_224.dino``.
        resize: Shorter side before the centre crop; by default the crop itself. timm's own margin is not used: for the
            DINO models it is not that of their authors.
        device: Where it runs.
    """

    def __init__(self, model: str, resize: int | None = None, device: str = "cpu") -> None:
        _check_folder(model, "config.json")
        self.name = f"timm {model}"
        self.model = timm.create_model(model, pretrained=True, num_classes=0).eval().to(device)
        config = self.model.pretrained_cfg
        side = config["input_size"][-1]
        self.preprocessing = Preprocessing(resize or side, side, tuple(config["mean"]), tuple(config["std"]))

    @cached_property
    def identity(self) -> str:
        """Name, hash of the weights, preprocessing."""
        return _identity(self.name, self.model, self.preprocessing)

    def encode_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Unit embeddings, float32 ``(N, D)`` on the CPU."""
        return _encode(self.model, self.model, images, self.preprocessing)


@torch.inference_mode()
def _encode(function: Any, model: nn.Module, images: Sequence[Image.Image], preprocessing: Preprocessing) -> Tensor:
    if not images:
        raise ValueError("there are no images to encode")
    device = next(model.parameters()).device
    inputs = (torch.stack([preprocessing(image) for image in chunk]) for chunk in _chunks(images))
    return torch.cat([normalize(function(batch.to(device)).float(), dim=-1).cpu() for batch in inputs])


def _chunks(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (items[start : start + BATCH] for start in range(0, len(items), BATCH))


def _identity(name: str, model: nn.Module, preprocessing: Preprocessing) -> str:
    digest = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(f"{key} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return f"{name}, weights {digest.hexdigest()[:16]}, {preprocessing}"


def _check_folder(model: str, config: str) -> None:
    folder = Path(model.removeprefix(LOCAL))
    if model.startswith(LOCAL) and not (folder / config).exists():
        raise ValueError(f"the encoder {model} needs the file {folder / config}, which does not exist")


def _check_weights(model: str, pretrained: str | None) -> None:
    """Before a download: open_clip itself only warns of a wrong activation, and every score would be off."""
    if pretrained is None:
        raise ValueError(f"open_clip's {model} needs weights: set pretrained, e.g. pretrained=openai")
    trained = (open_clip.get_pretrained_cfg(model, pretrained) or {}).get("quick_gelu", False)
    if trained and not (open_clip.get_model_config(model) or {}).get("quick_gelu", False):
        raise ValueError(f"the weights {pretrained} of {model} need QuickGELU; use model={model}-quickgelu")


@contextmanager
def _errors_only() -> Iterator[None]:
    """open_clip tells the root logger all that it tries; hide it unless something is wrong."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
