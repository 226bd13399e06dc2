"""Embeddings of images, computed once: kept on disk under what was encoded and by which encoder."""

import hashlib
from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load, save
from torch import Tensor

from src.data.finite import check_finite
from src.data.images import Picture, content_hash
from src.data.store import Store
from src.eval.encoders.models import ImageEncoder, TextImageEncoder, read_ahead

Prepared = tuple[str, Tensor, bool]
"""Hash of the pixels, and either the embedding, where it is known (True), or the network input."""


class CachedEncoder:
    """An image encoder that encodes no picture twice, in this process or another.

    Each batch of new embeddings becomes one file (see ``Shards``): processes that write at the same time never meet.

    Args:
        encoder: Whose embeddings are kept.
        cache_dir: Holds one folder per encoder identity.
    """

    def __init__(self, encoder: ImageEncoder, cache_dir: str | Path) -> None:
        self.encoder, self.cache_dir = encoder, Path(cache_dir)
        self._known_shards: set[str] = set()
        self._places: dict[str, str] = {}

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

    @cached_property
    def shards(self) -> "Shards":
        """Where this encoder's embeddings are."""
        return Shards(self.cache_dir / hashlib.sha256(self.identity.encode()).hexdigest()[:16])

    def _prepare(self, image: Image.Image) -> Prepared:
        key = content_hash(image)
        embedding = self._known(key)
        return (key, self.encoder.preprocess(image), False) if embedding is None else (key, embedding, True)

    def _known(self, key: str) -> Tensor | None:
        shard = self._places.get(key)
        if shard is None:
            return None
        embeddings = self.shards.read(shard)
        if embeddings is None:
            self._known_shards.discard(shard)
            self._places = {known: place for known, place in self._places.items() if place != shard}
            return None
        return embeddings.get(key)

    def _embed(self, prepared: Sequence[Prepared]) -> Tensor:
        """Known embeddings as they are; the others are computed and kept."""
        embeddings = {key: tensor for key, tensor, known in prepared if known}
        new = {key: tensor for key, tensor, known in prepared if not known}
        if new:
            rows = self.encoder.encode_pixel_values(torch.stack(list(new.values())))
            computed = {key: row.contiguous() for key, row in zip(new, rows, strict=True)}
            self._learn(self.shards.add(computed), computed)
            embeddings |= computed
        return torch.stack([embeddings[key] for key, *_ in prepared])

    def _find_shards(self) -> None:
        """Learn what other calls and processes have written since."""
        for shard in sorted(set(self.shards.keys()) - self._known_shards):
            self._learn(shard, self.shards.read(shard) or {})

    def _learn(self, shard: str, embeddings: Iterable[str]) -> None:
        self._known_shards.add(shard)
        self._places |= dict.fromkeys(embeddings, shard)


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


class Shards(Store[dict[str, Tensor]]):
    """Embeddings ``(D,)`` by pixel hash, one batch a file, which is named by the hash of its content."""

    pattern = "*.safetensors"

    def add(self, embeddings: dict[str, Tensor]) -> str:
        """Keep a batch; returns its key."""
        key = hashlib.sha256(save(embeddings)).hexdigest()
        self.write(key, embeddings)
        return key

    def load(self, path: Path) -> dict[str, Tensor]:
        """Read a batch."""
        return _verified(path)

    def save(self, value: dict[str, Tensor], path: Path) -> None:
        """Write a batch.

        Raises:
            ValueError: If an embedding is not finite.
        """
        for embedding in value.values():
            check_finite(embedding, f"the embeddings for {self.folder}")
        path.write_bytes(save(value))


# Pictures mostly come in the order in which they were encoded; a handful of files is at hand, however many there are.
@lru_cache(maxsize=64)
def _verified(path: Path) -> dict[str, Tensor]:
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != path.stem:
        raise ValueError(f"{path} does not have the content whose hash is its name")
    embeddings = load(content)
    for embedding in embeddings.values():
        check_finite(embedding, f"the embeddings in {path}")
    return embeddings
