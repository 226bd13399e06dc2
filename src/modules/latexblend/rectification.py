"""Attention rectification (LaTexBlend's extended version): each concept is attended to in a part of its own.

The parts are the regions of a layout, or segments that are found in self-attention early in denoising. From then on
the scores of a concept's tokens, before the softmax over tokens, are raised inside of its part; they are lowered
outside of a region, or in the segments of the others. The change is strongest in early steps and for small parts.

Shapes: B prompts, H heads, N cells of a feature map, L tokens, K concepts of one prompt.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from src.data.layout import Region, covered
from src.data.ranges import Count, Share1, Weight
from src.modules.backbones.base import Backbone
from src.modules.latexblend.attention import MAX_CELLS, attention_grid, scores
from src.modules.latexblend.guidance import Phrases
from src.modules.latexblend.segments import matched, segmented

STRENGTH = 2.0
"""The reference code's, and here the default where a layout is given."""
MASKED = -1000.0
"""Below it, what a mask adds to a score keeps a token from being read."""
POWER = 5
"""Of the noise level by which the change of scores fades."""


@dataclass(frozen=True)
class Rectification:
    """How the scores of concepts are changed.

    Args:
        strength: Factor of the change; 0 for none. None changes what a layout places, and nothing else.
        start: Share of the noise schedule below which segments are found, where no layout gives them.
        num_segments: Segments that an image is cut into, or one more than its concepts if these are more.
        bind: Whether V* gets the key of the noun, see ``BlendedText``.
        isolate: Where image and text attend to both together: whether other words do not attend to concepts.

    Raises:
        ValueError: If one is out of range.
    """

    strength: Weight | None = None
    start: Share1 = 0.85
    num_segments: Count = 8
    bind: bool = field(default=False, repr=False)
    isolate: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        """Check the ranges."""
        strength = 0.0 if self.strength is None else self.strength
        if not 0 <= strength < math.inf or not 0 < self.start <= 1 or self.num_segments < 1:
            raise ValueError(
                f"rectification has strength {self.strength}, start {self.start} and num_segments {self.num_segments}; "
                "give a strength of at least 0, a start in (0, 1], and one segment or more"
            )

    @property
    def reads_scores(self) -> bool:
        """Whether something is asked of the scores of cross-attention."""
        return replace(self, bind=False, isolate=False) != Rectification()

    @contextlib.contextmanager
    def acting(
        self, backbone: Backbone, phrases: Sequence[Phrases], regions: Sequence[Sequence[Region | None]]
    ) -> Iterator[None]:
        """While active, calls of the backbone's pipeline attend to each concept in its part.

        Args:
            backbone: The model, with the concepts already installed by ``blended``.
            phrases: Token positions of the concepts of every prompt in the batch.
            regions: Their regions; a concept without one, in a prompt that has others, is left as it is.
        """
        parts = [self._parts(*each) for each in zip(phrases, regions, strict=True)]
        if not any(part.strength for part in parts):
            yield
            return
        with _Rectified(self, backbone, parts).installed():
            yield

    def _parts(self, phrases: Phrases, regions: Sequence[Region | None]) -> "_Parts":
        placed = any(region is not None for region in regions)
        usual = STRENGTH if placed else 0.0
        strength = (usual if self.strength is None else self.strength) if phrases else 0.0
        return _Parts(phrases, list(regions) if placed else None, strength, placed)


@dataclass
class _Parts:
    """One prompt: its concepts' tokens, and the part of each; None where the parts are still to be found."""

    phrases: Phrases
    regions: Sequence[Region | Tensor | None] | None
    strength: float
    placed: bool = False

    def shares(self, size: tuple[int, int]) -> list[Tensor | None]:
        """Return what each part covers of every cell, ``(N,)``."""
        return [None if one is None else _share(one, size) for one in self.regions or [None] * len(self.phrases)]


def _share(part: Region | Tensor, size: tuple[int, int]) -> Tensor:
    grown = F.adaptive_avg_pool2d(part[None], size)[0] if isinstance(part, Tensor) else covered(part, *size)
    return grown.flatten()


def rectified(scores: Tensor, own: Tensor, others: Tensor, factor: Tensor, read: Tensor | None = None) -> Tensor:
    """Raise scores towards the largest of their cell, and lower them towards the least.

    ``S' = S + f own (max S - S)`` and ``S'' = S' - f others (S' - min S)``, with extremes over tokens.

    Args:
        scores: Scaled products of queries and keys, ``(B, H, N, L)``.
        own: How much each token's own part covers of a cell, weighted by its size, ``(B, N, L)``.
        others: The same of the other concepts' parts.
        factor: Strength times the fading, at most 1, of each prompt, ``(B,)``.
        read: Whether a token is read and no padding, ``(B, L)``; None for all.
    """
    factor = factor.view(-1, 1, 1, 1)
    unread = None if read is None else ~read[:, None, None]
    most = (scores if unread is None else scores.masked_fill(unread, -math.inf)).amax(-1, keepdim=True)
    least = (scores if unread is None else scores.masked_fill(unread, math.inf)).amin(-1, keepdim=True)
    raised = scores + factor * own[:, None] * (most - scores)
    return raised - factor * others[:, None] * (raised - least)


def token_weights(
    phrases: Phrases, shares: Sequence[Tensor | None], length: int, outside: bool = False
) -> tuple[Tensor, Tensor]:
    """Spread the parts of concepts over their tokens.

    A part counts less the more of the image it covers: its weight is 1 minus its share of all cells. Where parts
    overlap, a concept is at home and is not lowered.

    Args:
        phrases: Token positions of K concepts.
        shares: What each part covers of every cell, ``(N,)``; None for a concept without a part.
        length: Number of tokens L.
        outside: Whether a concept is lowered everywhere outside of its part, and not only in the others' parts.

    Returns:
        Weights of own parts and of where a concept is lowered, ``(N, L)`` each.
    """
    cells = next(len(share) for share in shares if share is not None)
    own, others = torch.zeros(cells, length), torch.zeros(cells, length)
    for phrase, share in zip(phrases, shares, strict=True):
        if share is None:
            continue
        rest = [other for other in shares if other is not None and other is not share]
        elsewhere = torch.stack(rest).amax(0) if rest else torch.zeros(cells)
        foreign = (torch.ones(cells) if outside else elsewhere) * (1 - share)
        own[:, list(phrase)] = (share * (1 - share.mean()))[:, None]
        others[:, list(phrase)] = (foreign * (1 - foreign.mean()))[:, None]
    return own, others


class _Rectified:
    """Hooks that change the scores of cross-attention by way of its mask, and find segments where none are given."""

    def __init__(self, settings: Rectification, backbone: Backbone, parts: Sequence[_Parts]) -> None:
        self.settings, self.backbone, self.parts = settings, backbone, parts
        self.level, self.finding = 0.0, False
        self.size: tuple[int, int] = (1, 1)
        self.seen: dict[str, list[Tensor]] = {"attn1": [], "attn2": []}  # (B, N, N) and (B, N, L)
        self.weights: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        denoiser = self.backbone.denoiser
        handles = [
            denoiser.register_forward_pre_hook(self._begin, with_kwargs=True),
            denoiser.register_forward_hook(self._end),
        ]
        for name, module in denoiser.named_modules():
            if name.endswith("attn1"):
                handles.append(module.register_forward_pre_hook(self._see, with_kwargs=True))
            elif name.endswith("attn2"):
                handles.append(module.register_forward_pre_hook(self._rectify, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _begin(self, denoiser: nn.Module, args: tuple, kwargs: dict) -> None:
        timestep = float(torch.as_tensor(kwargs["timestep"] if "timestep" in kwargs else args[1]).flatten()[0])
        self.level = timestep / self.backbone.last_timestep
        self.size = (args[0].shape[-2], args[0].shape[-1])
        missing = any(part.strength and part.regions is None for part in self.parts)
        # A pass that guidance adds has a gradient.
        self.finding = missing and self.level < self.settings.start and not torch.is_grad_enabled()

    def _end(self, denoiser: nn.Module, args: tuple, output: Any) -> None:
        if not self.finding:
            return
        self.finding = False
        cells = max(each.shape[1] for each in self.seen["attn1"])
        size = attention_grid(cells, self.size)
        selves = torch.stack([each for each in self.seen["attn1"] if each.shape[1] == cells]).mean(0)  # (B, N, N)
        for row, part in enumerate(self.parts):
            if part.strength and part.regions is None:
                number = min(max(self.settings.num_segments, len(part.phrases) + 1), cells)
                segments = segmented(selves[row], number)
                part.regions = matched(segments, self._noun_maps(row, part.phrases, size)).unflatten(1, size).unbind()
        self.seen = {"attn1": [], "attn2": []}

    def _noun_maps(self, row: int, phrases: Phrases, size: tuple[int, int]) -> Tensor:
        """Attention to each concept's noun, mean over layers, each in [0, 1]: ``(K, N)``."""
        grids = [each[row].T.unflatten(1, attention_grid(each.shape[1], self.size)) for each in self.seen["attn2"]]
        maps = torch.stack([F.interpolate(each[None], size, mode="bilinear")[0] for each in grids]).mean(0)
        nouns = torch.stack([maps[list(phrase[1:])].mean(0).flatten() for phrase in phrases])
        low, high = nouns.amin(1, keepdim=True), nouns.amax(1, keepdim=True)
        return (nouns - low) / (high - low).clamp(min=torch.finfo(torch.float32).tiny)

    def _see(self, layer: Any, args: tuple, kwargs: dict) -> None:
        hidden = args[0]
        if self.finding and hidden.shape[1] <= MAX_CELLS:
            hidden = hidden[-len(self.parts) :]
            self.seen["attn1"].append(
                scores(layer.to_q(hidden), layer.to_k(hidden), layer.heads).softmax(-1).mean(1).float().cpu()
            )

    def _rectify(self, layer: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        hidden, number = args[0], len(self.parts)
        ready = any(part.strength and part.regions is not None for part in self.parts)
        if not ready and not (self.finding and hidden.shape[1] <= MAX_CELLS):
            return None
        queries = layer.to_q(hidden[-number:])  # Before the keys, as in the layer itself: others record both.
        # The whole text: the cache of projections knows it.
        keys = layer.to_k(kwargs["encoder_hidden_states"])[-number:]
        found = scores(queries, keys, layer.heads)  # (B, H, N, L)
        mask, read = kwargs.get("attention_mask"), None
        if mask is not None:
            read = mask[-number:, 0] > MASKED
        if self.finding and hidden.shape[1] <= MAX_CELLS:
            seen = found if read is None else found.masked_fill(~read[:, None, None], -math.inf)
            self.seen["attn2"].append(seen.softmax(-1).mean(1).float().cpu())
        if not ready:
            return None
        own, others = (each.to(found) for each in self._weights(hidden.shape[1], keys.shape[1]))
        fading = [min(1.0, part.strength * self.level**POWER) for part in self.parts]
        change = rectified(found, own, others, torch.tensor(fading).to(found), read) - found
        bias = torch.zeros(len(hidden), *change.shape[1:], dtype=change.dtype, device=change.device)
        bias[-number:] = change
        if mask is not None:
            bias = bias + mask[:, None]
        return args, {**kwargs, "attention_mask": bias.flatten(0, 1)}

    def _weights(self, cells: int, length: int) -> tuple[Tensor, Tensor]:
        """Weights of every prompt, ``(B, N, L)`` each; they stay the same once all parts are known."""
        if (cells, length) in self.weights:
            return self.weights[cells, length]
        nothing = torch.zeros(cells, length)
        size = attention_grid(cells, self.size)
        found = [
            token_weights(part.phrases, part.shares(size), length, part.placed)
            if part.strength and part.regions is not None
            else (nothing, nothing)
            for part in self.parts
        ]
        own, others = (torch.stack(each) for each in zip(*found, strict=True))
        if all(part.regions is not None for part in self.parts if part.strength):
            self.weights[cells, length] = own, others
        return own, others
