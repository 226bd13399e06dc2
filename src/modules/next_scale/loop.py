"""The loop of next-scale prediction, the same for Infinity and Switti, and what a hook may do to it.

Rows of a forward pass: conditional paths, then, while guidance is on, unconditional ones. Paths: for each image its
streams beside each other; one stream until a hook forks them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from src.modules.next_scale.cache import KeyValueCache
from src.modules.next_scale.sampling import Generators, derived, exponential_noise, guided


class Condition(dict[str, Tensor]):
    """What every pass needs to know of the text, computed once for an image; the first axis of all tensors is rows."""

    def rows(self, index: slice | Tensor) -> "Condition":
        """The same for some rows only."""
        return Condition({name: tensor[index] for name, tensor in self.items()})

    def repeated(self, streams: int) -> "Condition":
        """Every row ``streams`` times, copies beside each other."""
        return Condition({name: tensor.repeat_interleave(streams, dim=0) for name, tensor in self.items()})


@dataclass(frozen=True)
class Streams:
    """How the rows of one pass belong together.

    Attributes:
        count: Paths of one image, beside each other.
        shared: Whether they all attend with the queries and keys of the first.
        own_history: Whether the paths had keys of their own before they began to share.
        last: Whether this is the last scale. With ``shared``, the first path then ends at the last block's queries and
            keys: nothing of it is wanted but these.
    """

    count: int = 1
    shared: bool = False
    own_history: bool = False
    last: bool = False

    def owners(self, hidden: Tensor) -> Tensor:
        """The rows that queries and keys are made of, ``(R, L, C) -> (R / count, L, C)`` where they are shared."""
        return hidden[:: self.count] if self.shared else hidden

    @property
    def drops_first(self) -> bool:
        """Whether the first path is not wanted beyond the last block's queries and keys."""
        return self.shared and self.last and not self.own_history

    def kept(self, rows: int) -> Tensor | None:
        """Rows of a pass that go on beyond the last block's queries and keys; None for all of them."""
        return torch.arange(rows).view(-1, self.count)[:, 1:].flatten() if self.drops_first else None


class NextScaleModel(Protocol):
    """What the loop asks of a model; built by its pipeline for one call."""

    num_scales: int
    num_blocks: int
    cache_capacity: int | None
    guidance: Sequence[float]
    """For each scale; 1 is none."""

    def empty_feature(self, images: int) -> Tensor:
        """``(images, d, H, W)`` zeros."""

    def paired(self, scale_index: int) -> bool:
        """Whether unconditional rows take part in this pass."""

    def logits(
        self, tokens: Tensor | None, scale_index: int, condition: Condition, cache: KeyValueCache, streams: Streams
    ) -> Tensor:
        """``(R, N, K)``, already divided by the temperature: K choices for each of N draws.

        ``tokens`` are ``next_tokens`` repeated for all rows, None in the first pass. Where ``streams.drops_first`` the
        rows of first paths are gone from the result.
        """

    def residual(self, logits: Tensor, noise: Tensor, scale_index: int) -> Tensor:
        """Draw codes from guided logits ``(P, N, K)``: ``(P, d, h, w)``, on the grid of the scale."""

    def accumulate(self, feature: Tensor, residual: Tensor, scale_index: int) -> Tensor:
        """The running sum with one more scale, ``(P, d, H, W)``."""

    def next_tokens(self, feature: Tensor, scale_index: int) -> Tensor:
        """Input of pass ``scale_index``, ``(P, L, d)``, from the running sum."""


@dataclass
class Generation:
    """One batch on its way through the scales. A hook may change ``feature`` and call ``fork``.

    Attributes:
        model: See ``NextScaleModel``.
        condition: Conditional rows, then unconditional ones if there are any.
        images: How many.
        generators: Of the draws.
        further: Generators of each path but the first; empty if all paths of an image draw with the same noise.
        feature: Running sum of the upsampled codes, ``(P, d, H, W)``, P = images x streams.
        streams: Of each image.
    """

    model: NextScaleModel
    condition: Condition
    images: int
    generators: Generators = None
    streams: Streams = field(default_factory=Streams)
    further: list[Generators] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Start with empty memory and an empty sum."""
        self.cache = KeyValueCache(self.model.num_blocks, self.model.cache_capacity)
        self.feature = self.model.empty_feature(self.images)

    @property
    def paths(self) -> int:
        """Rows of ``feature``."""
        return self.images * self.streams.count

    def fork(self, count: int, share_attention: bool = False, shared_noise: bool = True) -> None:
        """From here on every image has ``count`` paths; the first is what it would have been.

        Args:
            count: Paths of one image.
            share_attention: Whether all attend with the first one's queries and keys, conditional with conditional,
                unconditional with unconditional.
            shared_noise: Whether all draw with the same noise; otherwise the first alone draws with that of its image.
        """
        self.feature = self.feature.repeat_interleave(count, dim=0)
        self.condition = self.condition.repeated(count)
        self.cache.fork(count, share_attention)
        self.streams = Streams(count, share_attention)
        self.further = [] if shared_noise else derived(self.generators, count - 1)

    def share_attention(self) -> None:
        """From here on all paths of an image attend with the first one's queries and keys of the scale at hand."""
        self.streams = replace(self.streams, shared=True, own_history=True)

    def keep_images(self, number: int) -> None:
        """Go on with the first ``number`` images only; before a fork."""
        assert self.streams.count == 1, "images are dropped before a fork"
        rows = len(next(iter(self.condition.values())))
        kept = torch.cat([torch.arange(start, start + number) for start in range(0, rows, self.images)])
        self.condition = self.condition.rows(kept)
        self.cache.keep(kept)
        self.feature, self.images = self.feature[:number], number
        if isinstance(self.generators, Sequence):
            self.generators = self.generators[:number]

    def step(self, scale_index: int) -> None:
        """One pass: logits, codes, running sum."""
        tokens = self.model.next_tokens(self.feature, scale_index) if scale_index else None
        logits = self._guided_logits(tokens, scale_index)
        noise = self._noise((logits.shape[1], logits.shape[2]), logits)
        feature = self.feature
        if self.streams.drops_first:
            noise, feature = (t.unflatten(0, (self.images, -1))[:, 1:].flatten(0, 1) for t in (noise, feature))
        self.feature = self.model.accumulate(feature, self.model.residual(logits, noise, scale_index), scale_index)

    def _guided_logits(self, tokens: Tensor | None, scale_index: int) -> Tensor:
        last = scale_index == self.model.num_scales - 1
        self.streams = replace(self.streams, last=last)
        paired = self.model.paired(scale_index)
        rows = 2 * self.paths if paired else self.paths
        if not paired:
            self.cache.keep(slice(self.images * self.streams.count // self.cache.streams))
        if tokens is not None and paired:
            tokens = torch.cat([tokens, tokens])
        condition = self.condition.rows(slice(rows))
        logits = self.model.logits(tokens, scale_index, condition, self.cache, self.streams)
        return guided(logits, self.model.guidance[scale_index]) if paired else logits

    def _noise(self, shape: tuple[int, int], like: Tensor) -> Tensor:
        first = exponential_noise(self.images, shape, self.generators, like)
        if not self.further:
            return first.repeat_interleave(self.streams.count, dim=0)
        each = [first, *(exponential_noise(self.images, shape, generators, like) for generators in self.further)]
        return torch.stack(each, dim=1).flatten(0, 1)


OnScale = Callable[[int, Generation], None]
"""Called after every pass with the scale's index and the batch; what it changes is gone on with."""


@torch.no_grad()
def generate(generation: Generation, on_scale: Sequence[OnScale] = ()) -> Tensor:
    """Run all scales.

    Args:
        generation: A fresh one.
        on_scale: Hooks, called in order after each pass.

    Returns:
        The last running sum, ``(P, d, H, W)``; with shared attention without the first path of each image.
    """
    for scale_index in range(generation.model.num_scales):
        generation.step(scale_index)
        for hook in on_scale:
            hook(scale_index, generation)
    return generation.feature
