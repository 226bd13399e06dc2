"""Images with captions in webdataset shards, for sets that are streamed because they do not fit."""

import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from src.data.images import EXTENSIONS

MEMBERS = tuple(extension.removeprefix(".") for extension in EXTENSIONS)


class ShardSample(NamedTuple):
    """One image of a shard: what to call it, its file and its caption."""

    name: str
    encoded: bytes
    caption: str


class CaptionShards:
    """Tar files whose members share a name: ``0001.jpg`` and ``0001.txt`` (or ``0001.json``).

    The samples form ``num_streams`` endless streams. In each epoch every shard goes to exactly one stream, in a new
    order, so that all streams together show every sample once; within a stream, samples are shuffled in blocks. What a
    stream gives depends on the seed alone, and not on who reads it.

    Args:
        shards: Paths or anything else that webdataset opens; ``{0000..0099}`` stands for a hundred of them.
        num_streams: How many readers may share the work.
        caption: Member that holds the caption, with ``json.caption`` for the field of a JSON member.
        block: Samples that are shuffled together; so many encoded images are held in memory per stream.
        seed: Of the order.

    Raises:
        ValueError: If a shard is missing or cut short, there are fewer shards than streams, or the first has no image
            or no caption.
    """

    def __init__(
        self, shards: str | Sequence[str], num_streams: int, caption: str = "txt", block: int = 1000, seed: int = 0
    ) -> None:
        self.shards = expanded(shards)
        self.num_streams, self.caption, self.block, self.seed = num_streams, caption, block, seed
        _check_files([Path(shard) for shard in self.shards if ":" not in shard])
        if len(self.shards) < num_streams:
            raise ValueError(
                f"{len(self.shards)} shards cannot be dealt to data.num_streams={num_streams}; give at most as many"
            )
        if next(self.read(self.shards[0]), None) is None:
            raise ValueError(f"the shard {self.shards[0]} is empty")

    def stream(self, number: int) -> Iterator[ShardSample]:
        """The samples of one stream, without end."""
        for epoch in count():
            order = np.random.default_rng([self.seed, epoch]).permutation(len(self.shards))
            mine = (self.shards[shard] for shard in order[number :: self.num_streams])
            samples = (sample for shard in mine for sample in self.read(shard))
            rng = np.random.default_rng([self.seed, epoch, number])
            while block := list(islice(samples, self.block)):
                yield from (block[at] for at in rng.permutation(len(block)))

    def read(self, shard: str) -> Iterator[ShardSample]:
        """The samples of one shard in their order.

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
            raise ValueError(f"{name} has no image; it has: {has}")
        member, _, field = self.caption.partition(".")
        if member not in members:
            raise ValueError(f"{name} has no caption: there is no member {member}, only: {has}; set data.caption")
        text = _text(members[member], field)
        if not text:
            raise ValueError(f"{name} has no caption: {self.caption} holds no text; set data.caption")
        return ShardSample(name, image, text)


def expanded(shards: str | Sequence[str]) -> list[str]:
    """Paths or addresses of all shards, braces expanded.

    Raises:
        ValueError: If webdataset is not installed, or there is none.
    """
    try:
        from webdataset.shardlists import expand_urls
    except ImportError as error:
        raise ValueError("webdataset is not installed; run: pip install 'atelier[webdataset]'") from error
    listed = [shards] if isinstance(shards, str) else list(shards)
    found = [url for pattern in listed for url in expand_urls(pattern)]
    if not found:
        raise ValueError("no shards are given; set data.train.shards to paths such as 'shards/{0000..0099}.tar'")
    return found


def _check_files(paths: list[Path]) -> None:
    absent = [path for path in paths if not path.is_file()]
    if absent:
        raise ValueError(f"there is no shard {absent[0]} ({len(absent)} of {len(paths)} are missing)")
    for path in paths:
        # Readers take the end of the file for the end of the archive, and what is missing would go unnoticed.
        if path.suffix == ".tar" and not _ends_well(path):
            raise ValueError(f"the shard {path} is cut short: it does not end as a tar file does; copy it again")


def _ends_well(path: Path) -> bool:
    size = min(path.stat().st_size, tarfile.BLOCKSIZE)
    with path.open("rb") as file:
        file.seek(-size, os.SEEK_END)
        return file.read() == bytes(tarfile.BLOCKSIZE)


def _text(member: bytes, field: str) -> str:
    """The caption of a member with single spaces; empty if there is none."""
    text = member.decode("utf-8", errors="replace")
    if field:
        try:
            text = json.loads(text).get(field)
        except (json.JSONDecodeError, AttributeError):
            return ""
    return " ".join(text.split()) if isinstance(text, str) else ""
