"""Embeddings of images, computed once: kept on disk under what was encoded and by which encoder."""

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load, save
from torch import Tensor

from src.data.files import whole_file
from src.data.images import content_hash
from src.eval.encoders.network import ImageEncoder, Picture, TextImageEncoder, read_ahead

Prepared = tuple[str, Tensor, bool]
"""Hash of the pixels, and either the embedding, where it is known (True), or the network input."""


class CachedEncoder:
    """An image encoder that encodes no picture twice, in this process or another.

    Each batch of new embeddings becomes one file, named by the hash of its content and put in place whole: processes
    that write at the same time never meet, and damage shows when a file is read.

    Args:
        encoder: Whose embeddings are kept.
        cache_dir: Holds one folder per encoder identity.
    """

    def __init__(self, encoder: ImageEncoder, cache_dir: str | Path) -> None:
        self.encoder, self.cache_dir = encoder, Path(cache_dir)
        self._shards: set[Path] = set()
        self._places: dict[str, Path] = {}

    @property
    def identity(self) -> str:
        """The encoder's own: where an embedding was kept does not change it."""
        return self.encoder.identity

    def preprocess(self, image: Image.Image) -> Tensor:
        """Network input ``(3, H, W)``."""
        return self.encoder.preprocess(image)

    def encode_pixel_values(self, pixel_values: Tensor) -> Tensor:
        """Unit embeddings of one batch, which are not kept: it is pixels of pictures that are hashed."""
        return self.encoder.encode_pixel_values(pixel_values)

    def encode_images(self, images: Iterable[Picture]) -> Tensor:
        """Unit embeddings, float32 ``(N, D)`` on the CPU.

        Raises:
            ValueError: If there is no image, or a file cannot be read.
        """
        self._find_shards()
        batches = [self._embed(prepared) for prepared in read_ahead(self._prepare, images)]
        if not batches:
            raise ValueError("there are no images to encode")
        return torch.cat(batches)

    @property
    def folder(self) -> Path:
        """Where this encoder's embeddings are."""
        return self.cache_dir / hashlib.sha256(self.identity.encode()).hexdigest()[:16]

    def _prepare(self, image: Image.Image) -> Prepared:
        key = content_hash(image)
        embedding = self._known(key)
        return (key, self.encoder.preprocess(image), False) if embedding is None else (key, embedding, True)

    def _known(self, key: str) -> Tensor | None:
        path = self._places.get(key)
        if path is None:
            return None
        embeddings = _read_shard(path)
        if not embeddings:
            self._shards.discard(path)
            self._places = {known: place for known, place in self._places.items() if place != path}
        return embeddings.get(key)

    def _embed(self, prepared: Sequence[Prepared]) -> Tensor:
        """Known embeddings as they are; the others are computed and kept."""
        embeddings = {key: tensor for key, tensor, known in prepared if known}
        new = {key: tensor for key, tensor, known in prepared if not known}
        if new:
            rows = self.encoder.encode_pixel_values(torch.stack(list(new.values())))
            computed = dict(zip(new, rows, strict=True))
            self._write(computed)
            embeddings |= computed
        return torch.stack([embeddings[key] for key, *_ in prepared])

    def _find_shards(self) -> None:
        """Learn what other calls and processes have written since."""
        for path in sorted(set(self.folder.glob("*.safetensors")) - self._shards):
            self._places |= dict.fromkeys(_read_shard(path), path)
            self._shards.add(path)

    def _write(self, embeddings: Mapping[str, Tensor]) -> None:
        content = save({key: tensor.contiguous() for key, tensor in embeddings.items()})
        path = self.folder / f"{hashlib.sha256(content).hexdigest()}.safetensors"
        with whole_file(path) as partial:
            partial.write_bytes(content)
        self._shards.add(path)
        self._places |= dict.fromkeys(embeddings, path)


class CachedTextEncoder(CachedEncoder):
    """The same of an encoder of images and texts; texts are few and short, and are encoded each time.

    Args:
        encoder: Whose embeddings are kept.
        cache_dir: Holds one folder per encoder identity.
    """

    def __init__(self, encoder: TextImageEncoder, cache_dir: str | Path) -> None:
        super().__init__(encoder, cache_dir)
        self.text_encoder = encoder

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit embeddings, float32 ``(N, D)`` on the CPU."""
        return self.text_encoder.encode_texts(texts)


def _read_shard(path: Path) -> dict[str, Tensor]:
    """Embeddings by pixel hash; a file that is not what its name says is removed and counts as empty."""
    try:
        return _verified(path)
    except (OSError, _DamagedError):
        logging.getLogger(__name__).warning("%s is damaged or gone; its embeddings are computed again", path)
        path.unlink(missing_ok=True)
        return {}


class _DamagedError(Exception):
    """The content of a file does not have the hash that is its name."""


# Pictures mostly come in the order in which they were encoded; a handful of files is at hand, however many there are.
@lru_cache(maxsize=64)
def _verified(path: Path) -> dict[str, Tensor]:
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != path.stem:
        raise _DamagedError
    return load(content)
