"""Large images decoded in overlapping squares, for little memory.

Shapes: B images, d channels of a code, H x W cells, s pixels of a cell's side.
"""

from collections.abc import Callable

import torch
from torch import Tensor


class TiledDecoding:
    """What an image tokenizer's ``decode`` needs to go square by square, as diffusers' autoencoders do.

    Images of one square are decoded whole. Of larger ones each square is decoded as if it were an image: group norms,
    and where a decoder has it attention, see that square only. Colours may so differ a little from square to square,
    which the overlap blends; details do not, but within a decoder's reach of a square's edge.
    """

    tile: tuple[int, int] | None = None

    def enable_tiling(self, size: int = 32, overlap: int = 8) -> None:
        """Decode squares of ``size`` cells that overlap by ``overlap``.

        Raises:
            ValueError: If squares would not advance.
        """
        if not 0 <= overlap < size:
            raise ValueError(f"tiles of {size} cells overlap by {overlap}; give an overlap from 0 to {size - 1}")
        self.tile = (size, overlap)

    def disable_tiling(self) -> None:
        """Decode whole images again."""
        self.tile = None

    def decoded(self, decoder: Callable[[Tensor], Tensor], feature: Tensor, patch: int) -> Tensor:
        """Whole, or in squares that fade into each other, ``(B, d, H, W) -> (B, 3, H s, W s)``.

        Args:
            decoder: Features to pixel values.
            feature: Of the whole images.
            patch: Pixels of a cell's side.
        """
        rows, columns = feature.shape[-2:]
        if self.tile is None or max(rows, columns) <= self.tile[0]:
            return decoder(feature)
        size, overlap = self.tile
        total = feature.new_zeros(len(feature), 3, rows * patch, columns * patch, dtype=torch.float32)
        weights = torch.zeros_like(total[0, 0])
        for top in _starts(rows, size, overlap):
            for left in _starts(columns, size, overlap):
                tile = decoder(feature[..., top : top + size, left : left + size])
                ramp = torch.outer(*(_ramp(side, overlap * patch, weights.device) for side in tile.shape[-2:]))
                window = (..., slice(top * patch, (top + size) * patch), slice(left * patch, (left + size) * patch))
                total[window] += tile * ramp
                weights[window] += ramp
        return total / weights


def _starts(length: int, size: int, overlap: int) -> list[int]:
    return sorted({min(start, max(length - size, 0)) for start in range(0, max(length - overlap, 1), size - overlap)})


def _ramp(length: int, overlap: int, device: torch.device) -> Tensor:
    steps = torch.arange(1, length + 1, device=device, dtype=torch.float32)
    return torch.minimum(steps, steps.flip(0)).clamp(max=overlap + 1)
