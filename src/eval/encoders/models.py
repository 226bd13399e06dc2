"""CLIP and DINO models as encoders: pictures read ahead, weights by name or folder."""

import logging
import os
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from difflib import get_close_matches
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

import open_clip
import timm
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize

from src.data.finite import check_finite
from src.data.identity import weights_fingerprint
from src.data.images import Picture, as_image
from src.data.ranges import Count
from src.eval.encoders.preprocessing import Preprocessing, of_open_clip, of_timm


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


BATCH = 64
# Pillow decodes and resizes without Python's lock; more threads than this only hold more memory.
THREADS = min(8, os.cpu_count() or 1)

Result = TypeVar("Result")


def read_ahead(
    function: Callable[[Image.Image], Result], pictures: Iterable[Picture], batch: int = BATCH
) -> Iterator[list[Result]]:
    """What ``function`` makes of each picture, in order and in batches.

    Args:
        function: Called in threads, on upright RGB where the picture is a file.
        pictures: Read, or made, as they are needed.
        batch: Length of the lists; the last may be shorter.

    Raises:
        ValueError: If a file cannot be read.
    """
    remaining = iter(pictures)
    with ThreadPoolExecutor(THREADS) as pool:

        def start() -> list[Future[Result]]:
            return [pool.submit(lambda one: function(as_image(one)), picture) for picture in islice(remaining, batch)]

        current = start()
        while current:
            coming = start()
            yield [future.result() for future in current]
            current = coming


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
        """Unit embeddings, float32 ``(N, D)`` on the CPU, of one batch of network input ``(N, 3, H, W)``.

        Raises:
            ValueError: If one is not finite.
        """
        return self.unit(self.features(pixel_values.to(self.device)))

    def unit(self, features: Tensor) -> Tensor:
        """Scale features ``(N, D)`` to unit length, in float32 on the CPU.

        Raises:
            ValueError: If one is not finite.
        """
        check_finite(features, f"what {self.name} makes of its input", "its weights may be damaged: fetch them anew")
        return normalize(features.float(), dim=-1).cpu()

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


class OpenClipEncoder(NetworkEncoder):
    """Any open_clip model, by its name there or as ``local-dir:FOLDER``.

    Args:
        model: Such as ``local-dir:world/clip`` or ``ViT-B-32-quickgelu``.
        pretrained: Tag or file of the weights; needless for a folder or ``hf-hub:``.
        device: Where it runs.

    Raises:
        ValueError: If there is no such model, it has no such weights, or their activation is not the model's.
    """

    def __init__(self, model: str, pretrained: str | None = None, device: str = "cpu") -> None:
        _check_folder(model, "open_clip_config.json")
        if ":" not in model:
            _check_known(model, open_clip.list_models(), "open_clip")
            _check_weights(model, pretrained)
        super().__init__(f"open_clip {model}" + (f" {pretrained}" if pretrained else ""), device)
        self.source, self.pretrained, self.said_cut = model, pretrained, False

    def load(self) -> nn.Module:
        """The network with its weights."""
        return open_clip.create_model(
            self.source, pretrained=self.pretrained, require_pretrained=True, weights_only=True
        )

    @cached_property
    def tokenizer(self) -> Any:
        """Texts to tokens."""
        with quiet():
            return open_clip.get_tokenizer(self.source)

    @cached_property
    def preprocessing(self) -> Preprocessing:
        """That of open_clip for these weights."""
        return of_open_clip(self.model.visual.preprocess_cfg)

    def features(self, pixel_values: Tensor) -> Tensor:
        """Image embeddings ``(N, D)``."""
        return self.model.encode_image(pixel_values)

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit embeddings, float32 ``(N, D)`` on the CPU; each text is encoded once.

        The first time that texts are longer than what the network reads, it is said.
        """
        places = {text: index for index, text in enumerate(dict.fromkeys(texts))}
        unique = list(places)
        chunks = (unique[start : start + BATCH] for start in range(0, len(unique), BATCH))
        features = torch.cat([self.model.encode_text(self._tokens(chunk).to(self.device)) for chunk in chunks])
        return self.unit(features)[[places[text] for text in texts]]

    def _tokens(self, texts: Sequence[str]) -> Tensor:
        tokens = self.tokenizer([*texts, ""])
        # With room for one more token, a text that was not cut gains no more than padding, as an empty text does.
        longer = self.tokenizer([*texts, ""], context_length=tokens.shape[1] + 1)
        gained = longer.sum(1) - tokens.sum(1)
        cut = [text for text, one in zip(texts, gained.tolist(), strict=False) if one != gained[-1]]
        if cut and not self.said_cut:
            self.said_cut = True
            logging.getLogger(__name__).warning(
                "%s reads %d tokens; %d texts are longer and cut there, such as %r",
                *(self.name, tokens.shape[1], len(cut), textwrap.shorten(cut[0], 80)),
            )
        return tokens[:-1]


class TimmEncoder(NetworkEncoder):
    """Pooled features of any timm model, by its name there or as ``local-dir:FOLDER``.

    Args:
        model: Such as ``local-dir:world/dino`` or ``vit_small_patch16_224.dino``.
        resize: Shorter side before the centre crop; by default what timm does for the weights. For the DINO models that
            is not what their authors did, which is 256.
        crop: Side that a vision transformer sees, where it is not the one of timm: DINOv2 has 518 there, 224 in papers.
        projected: Whether the network's last linear layer belongs to its features; of a classifier it does not.
        device: Where it runs.

    Raises:
        ValueError: If there is no such model.
    """

    def __init__(
        self,
        model: str,
        resize: Count | None = None,
        crop: Count | None = None,
        projected: bool = False,
        device: str = "cpu",
    ) -> None:
        _check_folder(model, "config.json")
        if ":" not in model:
            _check_known(model, timm.list_models(pretrained=True), "timm")
        super().__init__(f"timm {model}", device)
        self.source, self.resize, self.crop, self.projected = model, resize, crop, projected

    def load(self) -> nn.Module:
        """The network with its weights, and without its classifier."""
        size = {} if self.crop is None else {"img_size": self.crop}
        head = {} if self.projected else {"num_classes": 0}
        return timm.create_model(self.source, pretrained=True, **head, **size)

    @cached_property
    def preprocessing(self) -> Preprocessing:
        """That of timm for these weights, but for the sides that were given."""
        return of_timm(self.model.pretrained_cfg, self.resize, self.crop)

    def features(self, pixel_values: Tensor) -> Tensor:
        """Pooled features ``(N, D)``: for DINO the class token after the last norm."""
        return self.model(pixel_values)


def _check_folder(model: str, config: str) -> None:
    folder = Path(model.removeprefix(LOCAL))
    if model.startswith(LOCAL) and not (folder / config).exists():
        raise ValueError(f"the encoder {model} needs the file {folder / config}, which does not exist")


def _check_known(model: str, known: Sequence[str], library: str) -> None:
    if model not in known:
        close = get_close_matches(model, known, n=1)
        advice = f"did you mean model={close[0]}?" if close else f"a folder is written model={LOCAL}FOLDER"
        raise ValueError(f"{library} has no pretrained model {model!r}; {advice}")


def _check_weights(model: str, pretrained: str | None) -> None:
    """Before a download: open_clip itself only warns of a wrong activation, and every score would be off."""
    tags = open_clip.list_pretrained_tags_by_model(model)
    if pretrained is None:
        raise ValueError(f"open_clip's {model} needs weights: set pretrained, e.g. pretrained=openai")
    if pretrained not in tags and not Path(pretrained).is_file():
        raise ValueError(f"open_clip has no weights {pretrained!r} of {model}; choose one of: {', '.join(tags)}")
    trained = (open_clip.get_pretrained_cfg(model, pretrained) or {}).get("quick_gelu", False)
    if trained and not (open_clip.get_model_config(model) or {}).get("quick_gelu", False):
        raise ValueError(f"the weights {pretrained} of {model} need QuickGELU; use model={model}-quickgelu")
