"""Decode large images in overlapping squares, which takes less memory.

Shapes: B images, d channels of a code, H x W cells, a cell is s x s pixels.
"""

from collections.abc import Callable

import torch
from torch import Tensor


class TiledDecoding:
    """Mixin that lets an image tokenizer's ``decode`` go square by square, as diffusers' autoencoders do.

    An image that fits in one square is decoded whole. In a larger one each square is decoded as if it were an image:
    the decoder's group norms, and its attention if it has any, see that square only. Colours may therefore differ a
    little between squares, which the overlap blends; details differ only near a square's edge.
    """

    tile: tuple[int, int] | None = None

    def enable_tiling(self, size: int = 32, overlap: int = 8) -> None:
        """Decode in squares with a side of ``size`` cells that overlap by ``overlap`` cells.

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
        """Decode whole, or in squares that fade into each other, ``(B, d, H, W) -> (B, 3, H s, W s)``.

        Args:
            decoder: Maps a feature to pixel values.
            feature: Sum of codes of the whole images, ``(B, d, H, W)``.
            patch: Side s of a cell in pixels.
        """
        rows, columns = feature.shape[-2:]
        if self.tile is None or max(rows, columns) <= self.tile[0]:
            return decoder(feature)
        size, overlap = self.tile
        total = feature.new_zeros(len(feature), 3, rows * patch, columns * patch, dtype=torch.float32)
        weights = torch.zeros_like(total[0, 0])  # (H s, W s), the sum of all ramps
        for top in _starts(rows, size, overlap):
            for left in _starts(columns, size, overlap):
                tile = decoder(feature[..., top : top + size, left : left + size])  # (B, 3, h s, w s), h and w <= size
                ramp = torch.outer(*(_ramp(side, overlap * patch, weights.device) for side in tile.shape[-2:]))
                window = (..., slice(top * patch, (top + size) * patch), slice(left * patch, (left + size) * patch))
                total[window] += tile * ramp
                weights[window] += ramp
        return total / weights


def _starts(length: int, size: int, overlap: int) -> list[int]:
    return sorted({min(start, max(length - size, 0)) for start in range(0, max(length - overlap, 1), size - overlap)})


def _ramp(length: int, overlap: int, device: torch.device) -> Tensor:
    # Rises from 1 at both ends, and is flat outside of the overlap, where one square alone counts.
    steps = torch.arange(1, length + 1, device=device, dtype=torch.float32)
    return torch.minimum(steps, steps.flip(0)).clamp(max=overlap + 1)
