"""The loop of next-scale prediction, the same for Infinity and Switti, and what a hook may do to it.

An image is drawn along one or several paths (its streams): one until a hook forks it. The paths of an image stand
beside each other on the batch axis. The rows of a forward pass are all conditional paths and then, while guidance is
on, the same paths without text.

Shapes: P paths (images x streams), R rows of a pass (P or 2 P), L tokens of a scale, d channels of a code, C width of
the transformer, N draws of K choices, h x w cells of a scale, H x W cells of the last.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from src.data.finite import check_finite
from src.modules.next_scale.cache import KeyValueCache
from src.modules.next_scale.sampling import Generators, derived, exponential_noise, guided


class Condition(dict[str, Tensor]):
    """What every pass needs to know of the text, computed once for an image: tensors whose first axis is rows."""

    def rows(self, index: slice | Tensor) -> "Condition":
        """Select some rows of every tensor."""
        return Condition({name: tensor[index] for name, tensor in self.items()})

    def repeated(self, streams: int) -> "Condition":
        """Repeat every row ``streams`` times, copies beside each other."""
        return Condition({name: tensor.repeat_interleave(streams, dim=0) for name, tensor in self.items()})


@dataclass(frozen=True)
class Streams:
    """How the rows of one pass belong together.

    Attributes:
        count: Number of paths of one image.
        shared: Whether all paths of an image attend with the queries and keys of the first.
        own_history: Whether the paths had keys of their own before they began to share.
        last: Whether this is the last scale. With ``shared``, the first path then ends at the last block's queries and
            keys, because nothing else of it is needed.
    """

    count: int = 1
    shared: bool = False
    own_history: bool = False
    last: bool = False

    def owners(self, hidden: Tensor) -> Tensor:
        """Select the rows that have queries and keys, ``(R, L, C) -> (R / count, L, C)`` if they are shared."""
        return hidden[:: self.count] if self.shared else hidden  # the first path of each image

    @property
    def drops_first(self) -> bool:
        """Whether the first path of each image ends at the last block's queries and keys."""
        return self.shared and self.last and not self.own_history

    def kept(self, rows: int) -> Tensor | None:
        """Return the rows of a pass that go on beyond the last block's queries and keys; None for all of them."""
        return torch.arange(rows).view(-1, self.count)[:, 1:].flatten() if self.drops_first else None


class NextScaleModel(Protocol):
    """What the loop asks of a model; a pipeline builds one for each call."""

    num_scales: int
    num_blocks: int
    cache_capacity: int | None
    guidance: Sequence[float]
    """Guidance scale of each scale; 1 is no guidance."""

    def empty_feature(self, images: int) -> Tensor:
        """Return zeros, ``(images, d, H, W)``."""

    def paired(self, scale_index: int) -> bool:
        """Tell whether unconditional rows take part in this pass."""

    def logits(
        self, tokens: Tensor | None, scale_index: int, condition: Condition, cache: KeyValueCache, streams: Streams
    ) -> Tensor:
        """Run the transformer on one scale: ``(R, N, K)`` logits, already divided by the temperature.

        ``tokens`` are those of ``next_tokens``, repeated for the unconditional rows; None in the first pass. If
        ``streams.drops_first``, the result lacks the rows of first paths.
        """

    def residual(self, logits: Tensor, noise: Tensor, scale_index: int) -> Tensor:
        """Draw codes from guided logits ``(P, N, K)``: ``R_s`` on the grid of the scale, ``(P, d, h, w)``."""

    def accumulate(self, feature: Tensor, residual: Tensor, scale_index: int) -> Tensor:
        """Add one scale to the running sum, ``F_s = F_{s-1} + up(R_s)``: ``(P, d, H, W)``."""

    def next_tokens(self, feature: Tensor, scale_index: int) -> Tensor:
        """Resize the running sum to the grid of pass ``scale_index``, whose input it is: ``(P, L, d)``."""


@dataclass
class Generation:
    """One batch on its way through the scales. A hook may change ``feature`` and call ``fork``.

    Attributes:
        model: Predicts the logits and adds up the codes.
        condition: Text of the conditional rows, then of the unconditional ones if there are any.
        images: Number of images.
        generators: Generators that codes are drawn with.
        further: Generators of each path but the first; empty if all paths of an image draw with the same noise.
        feature: Running sum of the upsampled codes, ``F_s`` of arXiv 2507.04482, ``(P, d, H, W)``.
        streams: Paths of each image, and what they share.
    """

    model: NextScaleModel
    condition: Condition
    images: int
    generators: Generators = None
    streams: Streams = field(default_factory=Streams)
    further: list[Generators] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Start with an empty cache and a running sum of zero."""
        self.cache = KeyValueCache(self.model.num_blocks, self.model.cache_capacity)
        self.feature = self.model.empty_feature(self.images)

    @property
    def paths(self) -> int:
        """Number of paths P of all images, the rows of ``feature``."""
        return self.images * self.streams.count

    def fork(self, count: int, share_attention: bool = False, shared_noise: bool = True) -> None:
        """Give every image ``count`` paths from here on; the first goes on as if nothing had happened.

        Args:
            count: Paths of one image.
            share_attention: Whether all paths attend with the first one's queries and keys: conditional rows with its
                conditional ones, unconditional rows with its unconditional ones.
            shared_noise: Whether all paths draw with the noise of their image; otherwise only the first does.
        """
        self.feature = self.feature.repeat_interleave(count, dim=0)  # (P, d, H, W)
        self.condition = self.condition.repeated(count)
        self.cache.fork(count, share_attention)
        self.streams = Streams(count, share_attention)
        self.further = [] if shared_noise else derived(self.generators, count - 1)

    def share_attention(self) -> None:
        """Let all paths of an image attend with the first one's queries and keys of each further scale."""
        self.streams = replace(self.streams, shared=True, own_history=True)

    def keep_images(self, number: int) -> None:
        """Go on with the first ``number`` images only; allowed before a fork."""
        assert self.streams.count == 1, "images are dropped before a fork"
        rows = len(next(iter(self.condition.values())))
        kept = torch.cat([torch.arange(start, start + number) for start in range(0, rows, self.images)])
        self.condition = self.condition.rows(kept)
        self.cache.keep(kept)
        self.feature, self.images = self.feature[:number], number
        if isinstance(self.generators, Sequence):
            self.generators = self.generators[:number]

    def step(self, scale_index: int) -> None:
        """Run one pass: predict logits, draw codes from them, and add these to the running sum.

        Raises:
            ValueError: If logits are not finite, from which codes would be drawn all the same.
        """
        tokens = self.model.next_tokens(self.feature, scale_index) if scale_index else None  # (P, L, d)
        logits = self._guided_logits(tokens, scale_index)  # (P, N, K)
        noise = self._noise((logits.shape[1], logits.shape[2]), logits)  # (P, N, K)
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
        condition = self.condition.rows(slice(rows))  # without guidance: the conditional rows alone
        logits = self.model.logits(tokens, scale_index, condition, self.cache, self.streams)
        check_finite(logits, f"the logits of scale {scale_index}")
        return guided(logits, self.model.guidance[scale_index]) if paired else logits

    def _noise(self, shape: tuple[int, int], like: Tensor) -> Tensor:
        first = exponential_noise(self.images, shape, self.generators, like)
        if not self.further:
            return first.repeat_interleave(self.streams.count, dim=0)
        each = [first, *(exponential_noise(self.images, shape, generators, like) for generators in self.further)]
        return torch.stack(each, dim=1).flatten(0, 1)  # (P, N, K), paths of an image adjacent


OnScale = Callable[[int, Generation], None]
"""A hook that is called after every pass with the scale's index and the batch, which it may change."""


@torch.no_grad()
def generate(generation: Generation, on_scale: Sequence[OnScale] = ()) -> Tensor:
    """Draw a batch scale by scale.

    Args:
        generation: A batch that has not begun.
        on_scale: Hooks, called in order after each pass.

    Returns:
        The last running sum ``F_S``, ``(P, d, H, W)``; with shared attention it lacks the first path of each image.
    """
    for scale_index in range(generation.model.num_scales):
        generation.step(scale_index)
        for hook in on_scale:
            hook(scale_index, generation)
    return generation.feature
