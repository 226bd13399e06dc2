"""Memory that a call of a scale-wise pipeline takes at its peak, counted from shapes, and whether it is free."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Protocol, runtime_checkable

import psutil
import torch

from src.modules.next_scale.infinity.autoencoder import BSQTokenizer
from src.modules.next_scale.infinity.transformer import InfinityTransformer
from src.modules.next_scale.loop import NextScaleModel
from src.modules.next_scale.switti.autoencoder import VQVAE
from src.modules.next_scale.switti.transformer import SwittiTransformer

_log = logging.getLogger(__name__)
GIBIBYTE = 2**30


def free_memory(device: torch.device) -> int:
    """Bytes that can be had without swapping; on a GPU with those that torch holds and does not use."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return psutil.virtual_memory().available


def room_or_raise(nbytes: int, device: torch.device, what: str, advice: str) -> None:
    """Refuse to start on what cannot end well.

    Args:
        nbytes: That will be needed.
        device: Where.
        what: The thing that needs them.
        advice: What to type instead.

    Raises:
        ValueError: If they are not free.
    """
    free = free_memory(device)
    _log.info("%s: %.2f GiB of %.1f GiB that are free", what, nbytes / GIBIBYTE, free / GIBIBYTE)
    if nbytes > free:
        raise ValueError(
            f"{what} would take {nbytes / GIBIBYTE:.1f} GiB, but {free / GIBIBYTE:.1f} GiB are free; {advice}"
        )


SPARE = 1.1
"""What is taken for what was counted: allocators round up, libraries and small tensors want some."""
FLOAT = 4
"""Bytes of a float32."""
SCORE = 2 * FLOAT + 1
"""Of an entry of an attention map that is written out: score, softmax, and whether it is none."""
LOGIT = 9 * FLOAT
"""Of a logit while codes are drawn: itself, noise (two), what top_k leaves, that in order, its place (two), sums."""


@dataclass(frozen=True)
class Paths:
    """What becomes of a batch.

    Attributes:
        images: Drawn to the end.
        streams: Paths of each, once a hook has forked them.
        shared: Whether they attend with the queries and keys of the first from then on.
    """

    images: int
    streams: int = 1
    shared: bool = False

    @property
    def count(self) -> int:
        """Of all images together."""
        return self.images * self.streams

    @property
    def last(self) -> int:
        """Of all images, those that the last codes are drawn for: only its queries and keys are wanted of the first."""
        return self.images * (self.streams - 1) if self.shared else self.count


@runtime_checkable
class Forking(Protocol):
    """A hook that can say beforehand what it makes of a batch."""

    def paths(self, images: int) -> Paths:
        """Of so many images."""


def forked(hooks: Iterable[object], images: int) -> Paths:
    """What hooks make of a batch of so many images."""
    return next((hook.paths(images) for hook in hooks if isinstance(hook, Forking)), Paths(images))


@dataclass(frozen=True)
class BlockBytes:
    """Of a transformer's blocks.

    Attributes:
        keys: Of a token in all blocks; values take as many.
        text: Of a row in all blocks: text keys and values, scales and shifts.
        attention: Of a token in one block where self-attention is made, without the map.
        attention_map: Of a pair of tokens in one block, where a map is written out.
        feed_forward: Of a token in one block, behind the first matrix of the feed-forward layer.
    """

    keys: int
    text: int
    attention: int
    attention_map: int
    feed_forward: int

    @classmethod
    def of_infinity(cls, transformer: InfinityTransformer, text_length: int) -> "BlockBytes":
        """Hidden states are float32; what matrices read and write has the precision of the weights."""
        config, weight = transformer.config, transformer.dtype.itemsize
        exact, rounded = FLOAT * config.width, weight * config.width
        return cls(
            keys=config.depth * rounded,
            text=config.depth * (2 * text_length * rounded + 6 * exact),
            attention=7 * exact + rounded,
            attention_map=config.num_heads * SCORE,
            feed_forward=6 * exact + 2 * rounded + 2 * weight * len(transformer.get_parameter("blocks.0.fc1.weight")),
        )

    @classmethod
    def of_switti(cls, transformer: SwittiTransformer, text_length: int) -> "BlockBytes":
        """Everything has the precision of the weights; queries, keys and values live as long as their block."""
        config, weight = transformer.config, transformer.dtype.itemsize
        rounded = weight * config.width
        return cls(
            keys=config.depth * rounded,
            text=config.depth * (2 * text_length + 6) * rounded,
            attention=3 * FLOAT * config.width + 6 * rounded,
            attention_map=config.num_heads * SCORE,
            feed_forward=9 * rounded + 3 * weight * len(transformer.get_parameter("blocks.0.ffn.up_proj.weight")),
        )


@dataclass(frozen=True)
class PeakMemory:
    """Of one call, in bytes beside what is there already.

    Attributes:
        model: What draws.
        lengths: Tokens of each scale.
        logits: Of a token; a number.
        block: See there.
        feature: Channels, rows and columns of a running sum.
        vae: What decodes.
        patch: Pixels of a cell's side.
    """

    model: NextScaleModel
    lengths: Sequence[int]
    logits: int
    block: BlockBytes
    feature: tuple[int, int, int]
    vae: BSQTokenizer | VQVAE
    patch: int

    def drawing(self, images: int, paths: Paths, device: torch.device) -> int:
        """All scales of a batch of ``images`` that becomes ``paths``."""
        pair = 2 if any(self.model.paired(index) for index in range(self.model.num_scales)) else 1
        keys = pair * self.block.keys * (self.model.cache_capacity or 0)
        owners = paths.images if paths.shared else paths.count
        largest = max(self._pass(index, paths, device) for index in range(self.model.num_scales))
        forked = keys * (owners + paths.count) + largest
        text = pair * paths.count * self.block.text
        return ceil(SPARE * (max(2 * keys * images, forked) + text + self._features(paths)))

    def _pass(self, index: int, paths: Paths, device: torch.device) -> int:
        pair, length = 2 if self.model.paired(index) else 1, self.lengths[index]
        rows = pair * paths.count * length
        attention = rows * self.block.attention
        # Values of paths that share keys are wider than these; torch's fused kernels take that on GPUs alone.
        if paths.shared and device.type != "cuda":
            seen = sum(self.lengths[: index + 1]) if self.model.cache_capacity else length
            attention += pair * paths.images * length * seen * self.block.attention_map
        drawn = paths.last if index == self.model.num_scales - 1 else paths.count
        return max(attention, rows * self.block.feed_forward, drawn * length * self.logits * LOGIT)

    def decoding(self, paths: Paths) -> int:
        """All images one after the other, and what becomes of them: four copies while they turn into pictures."""
        rows, columns = self.feature[1:]
        image = 3 * FLOAT * rows * columns * self.patch**2
        images = paths.last * image
        tile = self.vae.tile
        one = self._decoder(rows * columns if tile is None else min(rows, tile[0]) * min(columns, tile[0]))
        one += 0 if tile is None else 2 * image
        return ceil(SPARE * (max(one + images, 4 * images) + self._features(paths)))

    def _decoder(self, cells: int) -> int:
        """Where it takes most: in a level's first block, or in a later one.

        Alive are then what came in, what is normed and what comes out, and the convolution's own layout of them.
        """
        config, weight = self.vae.config, self.vae.decoder.conv_in.weight
        widths = [config.base_channels * multiplier for multiplier in config.channel_multipliers]
        pixels = [cells * max(self.patch >> level, 1) ** 2 for level in range(len(widths))]
        levels = zip(pixels, [*widths[1:], widths[-1]], widths, strict=True)
        return weight.itemsize * max(
            number * max(3 * before + 2 * width, before + 5 * width) for number, before, width in levels
        )

    def _features(self, paths: Paths) -> int:
        return 4 * FLOAT * paths.count * prod(self.feature)
