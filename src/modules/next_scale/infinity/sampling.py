"""Infinity in the loop of next-scale prediction: draws bits, adds up their codes, resizes the sum to the next grid.

Shapes: P paths, R rows of a pass, L tokens of a scale, h x w cells of a scale, d bits of a cell, D bits of a token (d,
or 4 d if a token is 2 x 2 cells).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from src.modules.next_scale.cache import KeyValueCache
from src.modules.next_scale.infinity.bits import bit_codes, resized
from src.modules.next_scale.infinity.block import Rotation
from src.modules.next_scale.infinity.transformer import InfinityTransformer
from src.modules.next_scale.loop import Condition, Streams
from src.modules.next_scale.sampling import draw, truncated
from src.modules.next_scale.schedule import Grid, ScaleSchedule


def cell_grids(schedule: ScaleSchedule, patchify: bool) -> list[Grid]:
    """Return the image tokenizer's grids: those of the tokens, or with ``patchify`` twice as many rows and columns."""
    factor = 2 if patchify else 1
    return [(factor * rows, factor * columns) for rows, columns in schedule.grids]


def token_sequence(cells: Tensor, patchify: bool) -> Tensor:
    """Lay out the cells of one scale as a sequence of tokens, row by row: ``(B, d, h, w) -> (B, L, D)``."""
    return (pixel_unshuffle(cells, 2) if patchify else cells).flatten(2).mT


def cells_of(sequence: Tensor, grid: Grid, patchify: bool) -> Tensor:
    """Invert ``token_sequence``: ``(B, L, D)`` on a grid of tokens to ``(B, d, h, w)``."""
    cells = sequence.mT.unflatten(-1, grid)  # (B, D, rows, columns)
    return pixel_shuffle(cells, 2) if patchify else cells


@dataclass
class InfinityDraw:
    """Infinity as ``loop.generate`` sees it for one call, a ``NextScaleModel``.

    Attributes:
        transformer: Predicts the logits.
        schedule: Grids of the tokens.
        guidance: Guidance scale on the logits of each scale; 1 is no guidance.
        temperature: Temperature of each scale.
        top_k: Number of values that a bit may take: 1 always takes the likelier, 0 and 2 allow both.
        top_p: Values that are less likely than ``1 - top_p`` are not drawn.
        block_guidance: For each scale, index of a block to the guidance scale on its output.
    """

    transformer: InfinityTransformer
    schedule: ScaleSchedule
    guidance: Sequence[float]
    temperature: Sequence[float]
    top_k: int = 0
    top_p: float = 0.0
    block_guidance: Sequence[Mapping[int, float]] = field(default_factory=list)

    @classmethod
    def planned(
        cls,
        transformer: InfinityTransformer,
        schedule: ScaleSchedule,
        guidance_scale: float | Sequence[float],
        temperature: float | Sequence[float],
        top_k: int,
        top_p: float,
        cfg_insertion_layer: Sequence[int],
    ) -> "InfinityDraw":
        """Build from the arguments of a call, see ``InfinityPipeline.__call__``.

        Raises:
            ValueError: If one of them is impossible.
        """
        depth, number = transformer.config.depth, len(schedule.grids)
        guidance = _per_scale("guidance_scale", guidance_scale, number)
        temperatures = _per_scale("temperature", temperature, number)
        if min(temperatures) <= 0:
            raise ValueError(f"temperature is {temperature}; give positive numbers, or top_k=1 for the likeliest bits")
        if top_k < 0 or not 0 <= top_p <= 1:
            raise ValueError(f"top_k is {top_k} and top_p is {top_p}; give 0 or more, and a probability")
        wrong = [layer for layer in cfg_insertion_layer if not -depth <= layer <= 0]
        if wrong or not cfg_insertion_layer:
            raise ValueError(
                f"cfg_insertion_layer is {list(cfg_insertion_layer)}; give 0 for the logits, or -1 (the last block) to "
                f"{-depth} (the first)"
            )
        on_logits = guidance if 0 in cfg_insertion_layer else [1.0] * number
        blocks = [depth + layer for layer in cfg_insertion_layer if layer]
        on_blocks = [dict.fromkeys(blocks, scale) if scale != 1 else {} for scale in guidance]
        return cls(transformer, schedule, on_logits, temperatures, top_k, top_p, on_blocks)

    def __post_init__(self) -> None:
        """Derive the grids of cells and the sizes that the loop asks for."""
        config = self.transformer.config
        self.num_scales, self.num_blocks = len(self.schedule.grids), config.depth
        self.cache_capacity: int | None = self.schedule.starts[-1]
        self.patchify = config.patchify
        self.channels = config.token_bits // 4 if self.patchify else config.token_bits
        self.cells = cell_grids(self.schedule, self.patchify)
        self.block_guidance = self.block_guidance or [{}] * self.num_scales

    @cached_property
    def rotation(self) -> Rotation:
        """Rotary cosines and sines of all tokens, made on first use on the device that the transformer then is on."""
        return self.transformer.rotation(self.schedule)

    def empty_feature(self, images: int) -> Tensor:
        """Return zeros on the finest grid of cells, ``(images, d, H, W)``, float32."""
        return torch.zeros(images, self.channels, *self.cells[-1], device=self.rotation[0].device)

    def paired(self, scale_index: int) -> bool:
        """Tell whether this or a later scale is guided."""
        on_logits = any(scale != 1 for scale in self.guidance[scale_index:])
        return on_logits or any(self.block_guidance[scale_index:])

    def logits(
        self, tokens: Tensor | None, scale_index: int, condition: Condition, cache: KeyValueCache, streams: Streams
    ) -> Tensor:
        """Predict the logits of 0 and of 1 for every bit, divided by the temperature: ``(R, L D, 2)``."""
        here = slice(*self.schedule.starts[scale_index : scale_index + 2])  # the scale's place among all tokens
        rotation = self.rotation[0][here], self.rotation[1][here]  # (L, D / 2) each
        logits = self.transformer.scale_logits(
            tokens, scale_index, condition, rotation, cache, streams, self.block_guidance[scale_index]
        )
        return logits.div(self.temperature[scale_index]).flatten(1).unflatten(-1, (-1, 2))

    def residual(self, logits: Tensor, noise: Tensor, scale_index: int) -> Tensor:
        """Draw bits, and return their codes on the grid of cells, ``(P, d, h, w)``."""
        bits = draw(truncated(logits, self.top_k, self.top_p), noise)  # (P, L D)
        grid = self.schedule.grids[scale_index]
        return bit_codes(cells_of(bits.unflatten(1, (grid[0] * grid[1], -1)), grid, self.patchify))

    def accumulate(self, feature: Tensor, residual: Tensor, scale_index: int) -> Tensor:
        """Add the bilinearly upsampled codes to the running sum, ``(P, d, H, W)``."""
        return feature + resized(residual, self.cells[-1])

    def next_tokens(self, feature: Tensor, scale_index: int) -> Tensor:
        """Resize the running sum bilinearly, without antialiasing, to the grid of the scale: ``(P, L, D)``."""
        return token_sequence(resized(feature, self.cells[scale_index]), self.patchify)


def _per_scale(name: str, given: float | Sequence[float], number: int) -> list[float]:
    values = list(given) if isinstance(given, Sequence) else [given] * number
    if len(values) != number:
        raise ValueError(f"{name} has {len(values)} values, but {number} scales are drawn; give one, or one for each")
    return values
