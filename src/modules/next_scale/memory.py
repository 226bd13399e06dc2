"""Estimate from shapes the peak memory of a call of a scale-wise pipeline, and refuse what does not fit."""

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
    """Return the bytes that are free without swapping; on a GPU, what torch holds but does not use counts as free."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return psutil.virtual_memory().available


def room_or_raise(nbytes: int, device: torch.device, what: str, advice: str) -> None:
    """Refuse to start what would run out of memory.

    Args:
        nbytes: Bytes that will be needed.
        device: Device that they are needed on.
        what: Name of what needs them, for the message.
        advice: What to type instead.

    Raises:
        ValueError: If fewer bytes are free.
    """
    free = free_memory(device)
    _log.info("%s: %.2f GiB of %.1f GiB that are free", what, nbytes / GIBIBYTE, free / GIBIBYTE)
    if nbytes > free:
        raise ValueError(
            f"{what} would take {nbytes / GIBIBYTE:.1f} GiB, but {free / GIBIBYTE:.1f} GiB are free; {advice}"
        )


SPARE = 1.1
"""Factor on what was counted: allocators round up, and libraries and small tensors take some."""
FLOAT = 4
"""Bytes of a float32."""
SCORE = 2 * FLOAT + 1
"""Bytes of an entry of an attention map that is materialised: score, probability, and one for the mask."""
LOGIT = 9 * FLOAT
"""Bytes of a logit while codes are drawn: logit, noise (2), after top-k, sorted, its index (2), sums, mask."""


@dataclass(frozen=True)
class Paths:
    """How many paths a batch is drawn along.

    Attributes:
        images: Number of images that are drawn to the end.
        streams: Paths of each image, once a hook has forked it.
        shared: Whether the paths of an image share the queries and keys of the first.
    """

    images: int
    streams: int = 1
    shared: bool = False

    @property
    def count(self) -> int:
        """Number of paths of all images together."""
        return self.images * self.streams

    @property
    def last(self) -> int:
        """Number of paths that the last codes are drawn for: a shared first path ends at its queries and keys."""
        return self.images * (self.streams - 1) if self.shared else self.count


@runtime_checkable
class Forking(Protocol):
    """A hook that can tell beforehand how many paths it makes of a batch."""

    def paths(self, images: int) -> Paths:
        """Return the paths of a batch of so many images."""


def forked(hooks: Iterable[object], images: int) -> Paths:
    """Return the paths that hooks make of a batch of so many images."""
    return next((hook.paths(images) for hook in hooks if isinstance(hook, Forking)), Paths(images))


@dataclass(frozen=True)
class BlockBytes:
    """Bytes that the blocks of a transformer need.

    Attributes:
        keys: Keys of one token in all blocks; its values take as many.
        text: One row in all blocks: keys and values of the text, scales and shifts.
        attention: One token in the self-attention of one block, without the attention map.
        attention_map: One pair of tokens in one block, where the map is materialised.
        feed_forward: One token in the feed-forward layer of one block, after its first matrix.
    """

    keys: int
    text: int
    attention: int
    attention_map: int
    feed_forward: int

    @classmethod
    def of_infinity(cls, transformer: InfinityTransformer, text_length: int) -> "BlockBytes":
        """Count for Infinity: hidden states are float32, what matrices read and write has the weights' precision."""
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
        """Count for Switti: all has the weights' precision; queries, keys and values live as long as their block."""
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
    """Bytes that one call needs at its peak, beside what is in memory already.

    Attributes:
        model: Draws the codes.
        lengths: Number of tokens of each scale.
        logits: Number of logits of a token.
        block: Bytes that the transformer's blocks need.
        feature: Channels, rows and columns of a running sum.
        vae: Decodes the running sums.
        patch: Side of a cell in pixels.
    """

    model: NextScaleModel
    lengths: Sequence[int]
    logits: int
    block: BlockBytes
    feature: tuple[int, int, int]
    vae: BSQTokenizer | VQVAE
    patch: int

    def drawing(self, images: int, paths: Paths, device: torch.device) -> int:
        """Return the peak of drawing a batch of ``images`` that is forked into ``paths``."""
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
        # Values of paths that share keys are wider than the keys; only GPUs have a fused kernel for that.
        if paths.shared and device.type != "cuda":
            seen = sum(self.lengths[: index + 1]) if self.model.cache_capacity else length
            attention += pair * paths.images * length * seen * self.block.attention_map
        drawn = paths.last if index == self.model.num_scales - 1 else paths.count
        return max(attention, rows * self.block.feed_forward, drawn * length * self.logits * LOGIT)

    def decoding(self, paths: Paths) -> int:
        """Return the peak of decoding one image after another and making pictures of all, which takes 4 copies."""
        rows, columns = self.feature[1:]
        image = 3 * FLOAT * rows * columns * self.patch**2
        images = paths.last * image
        tile = self.vae.tile
        one = self._decoder(rows * columns if tile is None else min(rows, tile[0]) * min(columns, tile[0]))
        one += 0 if tile is None else 2 * image
        return ceil(SPARE * (max(one + images, 4 * images) + self._features(paths)))

    def _decoder(self, cells: int) -> int:
        """Return what the decoder's largest level takes, in its first residual block or in a later one.

        Alive at that point are the block's input, the normed input, the output, and the convolution's own copies.
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
