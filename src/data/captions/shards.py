"""Images with captions in webdataset shards, dealt to processes and workers and put together to batches."""

import json
import logging
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice
from operator import attrgetter
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from src.data.captions.buckets import Size
from src.data.captions.items import LEAVE_OUT, LoadedImage, image_batch, load
from src.data.identity import joined
from src.data.images import EXTENSIONS, how_to_read
from src.data.ranges import Count, Seed
from src.data.store import TensorStore

MEMBERS = tuple(extension.removeprefix(".") for extension in EXTENSIONS)


class ShardSample(NamedTuple):
    """One image of a shard: its name for messages, its encoded file and its caption."""

    name: str
    encoded: bytes
    caption: str


class CaptionShards:
    """Tar files in which the members of a sample share a name: ``0001.jpg`` and ``0001.txt`` (or ``0001.json``).

    The samples form ``num_streams`` endless streams. In each epoch every shard goes to exactly one stream, in a new
    order, so that all streams together yield every sample once; within a stream, samples are shuffled in blocks. The
    content of a stream depends only on the seed, not on the process that reads it.

    Args:
        shards: Paths or anything else that webdataset opens; ``{0000..0099}`` stands for a hundred of them.
        num_streams: Largest number of readers that may share the work.
        caption: Member that holds the caption; ``json.caption`` for the field ``caption`` of a JSON member.
        block: Number of samples shuffled together; each stream holds as many encoded images in memory.
        seed: Seed of the order.
        run_commands: Whether an address ``pipe:COMMAND`` may run its command; a configuration may come from anybody.

    Raises:
        ValueError: If a shard would run a command, is missing or cut short, there are fewer shards than streams, or the
            first has no image or no caption.
    """

    incidental: ClassVar[tuple[str, ...]] = ("run_commands",)

    @staticmethod
    def content(settings: Mapping[str, Any]) -> dict[str, str]:
        """Hash the sizes of the shards that these arguments name; to read terabytes would take too long."""
        found = [Path(shard) for shard in expanded(settings["shards"]) if Path(shard).is_file()]
        return {"sizes": joined({str(path): str(path.stat().st_size) for path in found})}

    def __init__(
        self,
        shards: str | Sequence[str],
        num_streams: Count,
        caption: str = "txt",
        block: Count = 1000,
        seed: Seed = 0,
        run_commands: bool = False,
    ) -> None:
        self.shards = expanded(shards)
        _check_addresses(self.shards, run_commands)
        self.num_streams, self.caption, self.block, self.seed = num_streams, caption, block, seed
        _check_files([Path(shard) for shard in self.shards if ":" not in shard])
        if len(self.shards) < num_streams:
            raise ValueError(
                f"{len(self.shards)} shards cannot be dealt to data.num_streams={num_streams}; give at most as many"
            )
        if next(self.read(self.shards[0]), None) is None:
            raise ValueError(f"the shard {self.shards[0]} is empty")

    def stream(self, number: int) -> Iterator[ShardSample]:
        """Yield the samples of one stream, without end."""
        for epoch in count():
            order = np.random.default_rng([self.seed, epoch]).permutation(len(self.shards))
            mine = (self.shards[shard] for shard in order[number :: self.num_streams])
            samples = (sample for shard in mine for sample in self.read(shard))
            rng = np.random.default_rng([self.seed, epoch, number])
            while block := list(islice(samples, self.block)):
                yield from (block[at] for at in rng.permutation(len(block)))

    def read(self, shard: str) -> Iterator[ShardSample]:
        """Yield the samples of one shard in their order.

        Raises:
            ValueError: If the shard is damaged, or a sample lacks its image or its caption.
        """
        import webdataset

        try:
            for members in webdataset.tarfile_samples([{"url": shard}]):
                yield self._sample(members, shard)
        except (tarfile.TarError, EOFError, OSError) as error:
            raise ValueError(f"the shard {shard} cannot be read: {error}") from error

    def _sample(self, members: dict[str, Any], shard: str) -> ShardSample:
        name = f"{members['__key__']} in {shard}"
        has = ", ".join(member for member in members if not member.startswith("__"))
        image = next((members[member] for member in MEMBERS if member in members), None)
        if image is None:
            raise ValueError(f"{name} has no image; it has: {has}{how_to_read(f'x.{member}' for member in members)}")
        member, _, field = self.caption.partition(".")
        if member not in members:
            raise ValueError(f"{name} has no caption: there is no member {member}, only: {has}; set data.caption")
        text = _text(members[member], field)
        if not text:
            raise ValueError(f"{name} has no caption: {self.caption} holds no text; set data.caption")
        return ShardSample(name, image, text)


def expanded(shards: str | Sequence[str]) -> list[str]:
    """List the paths or addresses of all shards, with braces expanded.

    Raises:
        ValueError: If webdataset is not installed, or there is no shard.
    """
    try:
        from webdataset.shardlists import expand_urls
    except ImportError as error:
        raise ValueError('webdataset is not installed; run: pip install -e ".[webdataset]"') from error
    listed = [shards] if isinstance(shards, str) else list(shards)
    found = [url for pattern in listed for url in expand_urls(pattern)]
    if not found:
        raise ValueError("no shards are given; set data.train.shards to paths such as 'shards/{0000..0099}.tar'")
    return found


ADDRESSES = ("", "file", "http", "https", "sftp", "ftps", "scp", "gs", "hf", "ais", "htgs")
"""Schemes of addresses that are only read."""


def _check_addresses(shards: Sequence[str], run_commands: bool) -> None:
    for shard in shards:
        scheme = shard.partition(":")[0].lower() if ":" in shard else ""
        if scheme == "pipe" and not run_commands:
            raise ValueError(
                f"the shard {shard[:80]!r} runs a command; if it is yours, add data.train.run_commands=true"
            )
        if scheme not in (*ADDRESSES, "pipe"):
            raise ValueError(
                f"the shard {shard[:80]!r} is no file and no address that starts with one of {ADDRESSES[1:]}"
            )


def _check_files(paths: list[Path]) -> None:
    absent = [path for path in paths if not path.is_file()]
    if absent:
        raise ValueError(f"there is no shard {absent[0]} ({len(absent)} of {len(paths)} are missing)")
    for path in paths:
        # Readers take the end of the file for the end of the archive, so a missing rest would go unnoticed.
        if path.suffix == ".tar" and not _ends_well(path):
            raise ValueError(f"the shard {path} is cut short: it does not end as a tar file does; copy it again")


def _ends_well(path: Path) -> bool:
    size = min(path.stat().st_size, tarfile.BLOCKSIZE)
    with path.open("rb") as file:
        file.seek(-size, os.SEEK_END)
        return file.read() == bytes(tarfile.BLOCKSIZE)


def _text(member: bytes, field: str) -> str:
    """Return the caption of a member with single spaces; empty if there is none."""
    text = member.decode("utf-8", errors="replace")
    if field:
        try:
            text = json.loads(text).get(field)
        except (json.JSONDecodeError, AttributeError):
            return ""
    return " ".join(text.split()) if isinstance(text, str) else ""


logger = logging.getLogger(__name__)
MOST_SKIPPED = 100
"""Number of unreadable images in a row after which a stream gives up."""


@dataclass(frozen=True)
class Placed:
    """One image with its caption and its position in the global batch of its step."""

    image: LoadedImage
    caption: str
    position: int


@dataclass(frozen=True)
class Reader:
    """Turns samples into images of one size.

    Attributes:
        bucket: Width and height.
        store: Store of latents, if there is one.
        skip_unreadable: Whether the next image replaces one that cannot be read.
    """

    bucket: Size
    store: TensorStore | None
    skip_unreadable: bool

    def images(self, samples: Iterable[ShardSample]) -> Iterator[tuple[LoadedImage, str]]:
        """Yield as many images with captions as there are samples, so that counting samples counts images.

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
    """Yields what the streams of this process, or of this worker of it, contribute to each step.

    Args:
        shards: Shards that the streams come from.
        streams: Numbers of the streams that this process reads.
        share: Number of images that each stream contributes to a step.
        steps: Steps to read for.
        reader: Decodes the images.
    """

    def __init__(self, shards: CaptionShards, streams: Sequence[int], share: int, steps: range, reader: Reader) -> None:
        self.shards, self.streams, self.share, self.steps, self.reader = shards, streams, share, steps, reader

    def __iter__(self) -> Iterator[tuple[int, list[Placed]]]:
        """Yield each step and its images, in the order of their positions."""
        worker = get_worker_info()
        streams = self.streams[worker.id :: worker.num_workers] if worker else self.streams
        start = self.steps.start * self.share
        flows = {number: self.reader.images(islice(self.shards.stream(number), start, None)) for number in streams}
        for step in self.steps:
            images = [(number * self.share + at, next(flows[number])) for number in streams for at in range(self.share)]
            yield step, [Placed(image, caption, position) for position, (image, caption) in images]


class StepBatches:
    """Yields one batch per step, put together from the shares that the workers read.

    Args:
        shares: Yields the share of each worker.
        num_workers: Number of worker processes; 0 to read in this one.
    """

    def __init__(self, shares: StreamShares, num_workers: int) -> None:
        self.shares, self.num_workers = shares, num_workers

    def __len__(self) -> int:
        """Steps in all: a resumed Lightning loop goes on counting from the first."""
        return self.shares.steps.stop

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the batches of the remaining steps."""
        # Items come from the workers in turns. The loader's own generator leaves the training's random state alone.
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
    """Yields the first ``number`` images of some shards in their order, ``batch_size`` at a time."""

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
