"""The images of a training or of a validation, a whole batch at a time."""

import logging
from typing import Any

import torch
from torch.utils.data import Dataset

from src.data.aspect_buckets import Size
from src.data.caption_sources import CaptionSource
from src.data.latent_store import LatentStore
from src.data.loaded_image import LoadedImage, image_batch, load
from src.data.step_sampling import Draw

LEAVE_OUT = "remove them, or leave them out with data.skip_unreadable=true"
logger = logging.getLogger(__name__)


class CaptionedItems(Dataset):
    """Part of a source; draws name images by their number in the source.

    Args:
        source: Images and captions.
        bucket_of: The bucket of every image of this part, by its number.
        skip_unreadable: Take the next image of the bucket for one that cannot be decoded.
    """

    def __init__(self, source: CaptionSource, bucket_of: dict[int, Size], skip_unreadable: bool = False) -> None:
        self.source, self.bucket_of, self.skip_unreadable = source, bucket_of, skip_unreadable
        shapes = sorted(set(bucket_of.values()))
        self.buckets = [[index for index in bucket_of if bucket_of[index] == shape] for shape in shapes]
        self.store: LatentStore | None = None
        self.skipped: set[int] = set()

    def __len__(self) -> int:
        """Number of images."""
        return len(self.bucket_of)

    @property
    def captions(self) -> list[str]:
        """One per image."""
        return [self.source.captions[index] for index in self.bucket_of]

    def in_order(self, batch_size: int) -> list[list[Draw]]:
        """Every image once, in batches of one bucket; an image's position is its place among all."""
        place = {index: at for at, index in enumerate(i for bucket in self.buckets for i in bucket)}
        starts = [(bucket, start) for bucket in self.buckets for start in range(0, len(bucket), batch_size)]
        return [[Draw(i, 0, place[i]) for i in bucket[start : start + batch_size]] for bucket, start in starts]

    def __getitems__(self, draws: list[Draw]) -> dict[str, Any]:
        """One whole batch; see ``image_batch``."""
        loaded = [self._load(draw.index) for draw in draws]
        return {
            "caption": [self.source.captions[index] for index, _ in loaded],
            "step": torch.tensor(draws[0].step),
            "position": torch.tensor([draw.position for draw in draws]),
            **image_batch([image for _, image in loaded]),
        }

    def _load(self, index: int) -> tuple[int, LoadedImage]:
        """The image, or the next one that can be read; and its number."""
        while index in self.skipped:
            index = self._next(index)
        with self.source.open(index) as file:
            encoded = file.read()
        try:
            return index, load(encoded, self.source.name(index), self.bucket_of[index], self.store)
        except ValueError as error:
            self._skip(index, error)
            return self._load(index)

    def _skip(self, index: int, error: ValueError) -> None:
        if not self.skip_unreadable:
            raise ValueError(f"{error}; {LEAVE_OUT}") from error
        self.skipped.add(index)
        logger.warning("%s; left out, number %d of this process", error, len(self.skipped))
        if self.skipped >= set(self._bucket(index)):
            raise ValueError(f"none of the {len(self._bucket(index))} images of one shape can be read") from error

    def _next(self, index: int) -> int:
        bucket = self._bucket(index)
        return bucket[(bucket.index(index) + 1) % len(bucket)]

    def _bucket(self, index: int) -> list[int]:
        return next(bucket for bucket in self.buckets if index in bucket)
