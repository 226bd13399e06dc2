"""Batches out of streams of shards: who reads what, and how the parts of several workers become one batch."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from operator import attrgetter
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from src.data.aspect_buckets import Size
from src.data.caption_shards import CaptionShards, ShardSample
from src.data.captioned_items import LEAVE_OUT
from src.data.latent_store import LatentStore
from src.data.loaded_image import LoadedImage, image_batch, load

logger = logging.getLogger(__name__)
MOST_SKIPPED = 100
"""Unreadable images in a row after which a stream gives up."""


@dataclass(frozen=True)
class Placed:
    """One image and where it belongs: its place in the global batch of its step."""

    image: LoadedImage
    caption: str
    position: int


@dataclass(frozen=True)
class Reader:
    """Turns samples into images of one size.

    Attributes:
        bucket: Width and height.
        store: Where latents may lie.
        skip_unreadable: Whether the next image stands in for one that cannot be read.
    """

    bucket: Size
    store: LatentStore | None
    skip_unreadable: bool

    def images(self, samples: Iterable[ShardSample]) -> Iterator[tuple[LoadedImage, str]]:
        """As many images with captions as there are samples, so that counting samples counts images.

        Raises:
            ValueError: If an image cannot be read, or with ``skip_unreadable`` too many in a row.
        """
        owed = 1
        for sample in samples:
            try:
                image = load(sample.encoded, sample.name, self.bucket, self.store)
            except ValueError as error:
                if not self.skip_unreadable or owed > MOST_SKIPPED:
                    raise ValueError(f"{error}; {LEAVE_OUT}") from error
                logger.warning("%s; left out", error)
                owed += 1
                continue
            yield from [(image, sample.caption)] * owed
            owed = 1


class StreamShares(IterableDataset):
    """What some streams give to each step; with several workers, what this worker's streams give.

    Args:
        shards: Where the streams come from.
        streams: Numbers of those that are read here.
        share: Images that each stream gives to a step.
        steps: For which steps.
        reader: Decodes them.
    """

    def __init__(self, shards: CaptionShards, streams: Sequence[int], share: int, steps: range, reader: Reader) -> None:
        self.shards, self.streams, self.share, self.steps, self.reader = shards, streams, share, steps, reader

    def __iter__(self) -> Iterator[tuple[int, list[Placed]]]:
        """Step and its images, in the order of their positions."""
        worker = get_worker_info()
        streams = self.streams[worker.id :: worker.num_workers] if worker else self.streams
        start = self.steps.start * self.share
        flows = {number: self.reader.images(islice(self.shards.stream(number), start, None)) for number in streams}
        for step in self.steps:
            images = [(number * self.share + at, next(flows[number])) for number in streams for at in range(self.share)]
            yield step, [Placed(image, caption, position) for position, (image, caption) in images]


class StepBatches:
    """One batch per step, put together from what the workers read.

    Args:
        shares: What to read.
        num_workers: Processes; 0 reads in this one.
    """

    def __init__(self, shares: StreamShares, num_workers: int) -> None:
        self.shares, self.num_workers = shares, num_workers

    def __len__(self) -> int:
        """Steps in all: a resumed Lightning loop goes on counting from the first."""
        return self.shares.steps.stop

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the batches of the remaining steps."""
        # Items come from the workers in turns. A generator of its own leaves the training's random state alone.
        loader = DataLoader(
            self.shares,
            batch_size=None,
            num_workers=self.num_workers,
            collate_fn=_whole,
            generator=torch.Generator(),
        )
        parts = iter(loader)
        while turn := list(islice(parts, max(1, self.num_workers))):
            (step,) = {step for step, _ in turn}
            yield _batch(step, sorted((placed for _, part in turn for placed in part), key=attrgetter("position")))


@dataclass(frozen=True)
class ValidationBatches:
    """The first ``number`` images of some shards, in their order, ``batch_size`` at a time."""

    shards: CaptionShards
    number: int
    batch_size: int
    reader: Reader

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Read them from the start."""
        samples = (sample for shard in self.shards.shards for sample in self.shards.read(shard))
        images = enumerate(self.reader.images(islice(samples, self.number)))
        placed = (Placed(image, caption, position) for position, (image, caption) in images)
        while batch := list(islice(placed, self.batch_size)):
            yield _batch(0, batch)


def _batch(step: int, placed: list[Placed]) -> dict[str, Any]:
    return {
        "caption": [each.caption for each in placed],
        "step": torch.tensor(step),
        "position": torch.tensor([each.position for each in placed]),
        **image_batch([each.image for each in placed]),
    }


def _whole(item: Any) -> Any:
    return item
