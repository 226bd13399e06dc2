"""The image tokenizer of VAR and Switti: convolutions around a residual codebook on a pyramid of square grids.

Shapes: B images, d channels of a code, V codes, n x n cells of a scale, N x N of the last, s x s pixels to a cell.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate, pad, scaled_dot_product_attention, silu

from src.modules.next_scale.infinity.autoencoder import ResidualBlock
from src.modules.next_scale.infinity.bits import pooled
from src.modules.next_scale.loading import PartlyExact
from src.modules.next_scale.tiles import TiledDecoding


@dataclass(frozen=True)
class Quantised:
    """Images as indices of a codebook.

    Attributes:
        indices: Indices of each scale, row by row, ``(B, n * n)``.
        features: Sum ``F_s`` of the contributions of all scales up to each, ``(B, d, N, N)``.
    """

    indices: list[Tensor]
    features: list[Tensor]


class ResidualCodebook(nn.Module):
    """One table of codes for all scales, and four convolutions (phi) that neighbouring scales share.

    Everything is computed in float32 whatever the weights, because running sums add up many small corrections, and on
    the device of the codes, because the table is needed at every scale while the tokenizer may be offloaded.

    Args:
        num_codes: Number of codes V.
        channels: Channels d of a code.
        smoothing: Share of the convolution in phi; the rest is the code itself.
    """

    def __init__(self, num_codes: int, channels: int, smoothing: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_codes, channels)
        self.phi = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(4))
        self.smoothing = smoothing

    def codes(self, weights: Tensor) -> Tensor:
        """Look up indices ``(B, n * n)``, or average codes with weights ``(B, n * n, V)``: ``(B, d, n, n)``."""
        table = self.embedding.weight.to(weights.device, torch.float32)
        rows = weights @ table if weights.is_floating_point() else table[weights]  # (B, n * n, d)
        return rows.mT.unflatten(-1, (round(rows.shape[1] ** 0.5), -1))

    def nearest(self, features: Tensor) -> Tensor:
        """Find the index of the nearest code for every cell, ``(B, d, n, n) -> (B, n * n)``."""
        cells, table = features.flatten(2).mT, self.embedding.weight.float()  # (B, n * n, d), (V, d)
        # Squared distance without the square of the cell, which is the same for all codes.
        return (table.square().sum(-1) - 2 * cells @ table.mT).argmin(-1)

    def contribution(self, codes: Tensor, scale_index: int, num_scales: int, side: int) -> Tensor:
        """Compute what a scale adds to the running sum, ``phi(bicubic(codes))``: ``(B, d, side, side)``."""
        if codes.shape[-1] != side:
            codes = interpolate(codes, size=(side, side), mode="bicubic", align_corners=False)  # (B, d, N, N)
        weight, bias = self.phi[phi_index(scale_index, num_scales, len(self.phi))].parameters()
        smoothed = conv2d(codes, weight.to(codes), bias.to(codes), padding=1)
        return torch.lerp(codes, smoothed, self.smoothing)

    def forward(self, features: Tensor, sides: Sequence[int], num_scales: int | None = None) -> Quantised:
        """Quantise features scale by scale: the codes of each scale are nearest to the residual that earlier ones left.

        Args:
            features: Features of the encoder, ``(B, d, N, N)``.
            sides: Sides of all grids of the schedule; its length decides which phi a scale has.
            num_scales: Number of scales to stop after; None for all.
        """
        residual, running = features.float(), torch.zeros_like(features, dtype=torch.float32)
        found = Quantised([], [])
        for index, side in enumerate(sides[:num_scales]):
            indices = self.nearest(pooled(residual, (side, side)))
            added = self.contribution(self.codes(indices), index, len(sides), features.shape[-1])
            residual, running = residual - added, running + added
            found.indices.append(indices)
            found.features.append(running)
        return found


def phi_index(scale_index: int, num_scales: int, count: int) -> int:
    """Return which phi a scale has: the nearest of ``count`` ticks between the first scale and the last."""
    ticks = np.linspace(1 / (3 * count), 1 - 1 / (3 * count), count)
    return int(np.abs(ticks - scale_index / (num_scales - 1)).argmin())


class PixelAttention(nn.Module):
    """Every position attends to every other with one head, ``(B, C, H, W) -> (B, C, H, W)``."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        """Add to each position what it attends to."""
        queries, keys, values = self.qkv(self.norm(hidden)).flatten(2).mT.unsqueeze(1).chunk(3, dim=-1)
        attended = scaled_dot_product_attention(queries, keys, values).squeeze(1)  # (B, H W, C)
        return hidden + self.proj_out(attended.mT.unflatten(-1, hidden.shape[-2:]))


class Level(nn.Module):
    """The residual blocks of one resolution, each followed by attention at the lowest, then the change of size."""

    def __init__(self, channels: Sequence[int], groups: int, attends: bool, resampling: nn.Module | None) -> None:
        super().__init__()
        pairs = zip(channels[:-1], channels[1:], strict=True)
        self.block = nn.ModuleList(ResidualBlock(before, after, groups) for before, after in pairs)
        self.attn = nn.ModuleList(PixelAttention(after, groups) if attends else nn.Identity() for after in channels[1:])
        self.resampling = resampling or nn.Identity()

    def forward(self, hidden: Tensor) -> Tensor:
        """Apply the blocks, then halve or double the size."""
        for block, attn in zip(self.block, self.attn, strict=True):
            hidden = attn(block(hidden))
        return self.resampling(hidden)


class Halving(nn.Conv2d):
    """Halves the size: a 3 x 3 convolution of stride 2 that pads on the right and below only."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, stride=2)

    def forward(self, hidden: Tensor) -> Tensor:
        """Halve the size, ``(B, C, H, W) -> (B, C, H / 2, W / 2)``."""
        return super().forward(pad(hidden, (0, 1, 0, 1)))


class Doubling(nn.Conv2d):
    """Doubles the size: each pixel becomes four, then a 3 x 3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1)

    def forward(self, hidden: Tensor) -> Tensor:
        """Double the size, ``(B, C, H, W) -> (B, C, 2 H, 2 W)``."""
        return super().forward(interpolate(hidden, scale_factor=2.0, mode="nearest"))


class Middle(nn.Module):
    """Two residual blocks with attention between them, at the lowest resolution."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels, groups)
        self.attn_1 = PixelAttention(channels, groups)
        self.block_2 = ResidualBlock(channels, channels, groups)

    def forward(self, hidden: Tensor) -> Tensor:
        """Apply one after the other, ``(B, C, H, W) -> (B, C, H, W)``."""
        return self.block_2(self.attn_1(self.block_1(hidden)))


class Encoder(nn.Module):
    """Images to features, ``(B, 3, N s, N s) -> (B, d, N, N)``; every level of ``down`` but the last halves."""

    def __init__(self, latent_channels: int, widths: Sequence[int], blocks: int, groups: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        before, lowest = [widths[0], *widths[:-1]], len(widths) - 1
        self.down = nn.ModuleList(
            Level([before[i], *[width] * blocks], groups, i == lowest, Halving(width) if i < lowest else None)
            for i, width in enumerate(widths)
        )
        self.mid = Middle(widths[-1], groups)
        self.norm_out = nn.GroupNorm(groups, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], latent_channels, 3, padding=1)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return features that are not yet quantised."""
        hidden = self.conv_in(pixel_values)
        for level in self.down:
            hidden = level(hidden)
        return self.conv_out(silu(self.norm_out(self.mid(hidden))))


class Decoder(nn.Module):
    """Sums of codes to images, ``(B, d, N, N) -> (B, 3, N s, N s)``; every level of ``up`` but the first doubles."""

    def __init__(self, latent_channels: int, widths: Sequence[int], blocks: int, groups: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(latent_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], groups)
        before, lowest = [*widths[1:], widths[-1]], len(widths) - 1
        self.up = nn.ModuleList(
            Level([before[i], *[width] * blocks], groups, i == lowest, Doubling(width) if i > 0 else None)
            for i, width in enumerate(widths)
        )
        self.norm_out = nn.GroupNorm(groups, widths[0], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, feature: Tensor) -> Tensor:
        """Return pixel values that are not yet clamped."""
        hidden = self.mid(self.conv_in(feature))
        for level in reversed(self.up):
            hidden = level(hidden)
        return self.conv_out(silu(self.norm_out(hidden)))


class VQVAE(TiledDecoding, PartlyExact, ModelMixin, ConfigMixin):
    """Encodes images to indices of a codebook on a pyramid of grids, and decodes sums of codes to images.

    The parts that choose codes stay in float32 when the model is loaded in half precision, because rounding would
    change the choice. The decoder attends to all cells of its lowest resolution; with tiling, to those of one square.

    Args:
        latent_channels: Channels d of a code.
        num_codes: Number of codes V.
        base_channels: Width at full resolution.
        channel_multipliers: Factors of the width, from full resolution down; each one after the first halves the size.
        layers_per_block: Residual blocks of a resolution in the encoder; the decoder has one more.
        smoothing: Share of the convolution in phi, see ``ResidualCodebook``.
        norm_num_groups: Groups of the group norms.
    """

    exact = ("encoder", "quant_conv", "quantize")

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 32,
        num_codes: int = 4096,
        base_channels: int = 160,
        channel_multipliers: Sequence[int] = (1, 1, 2, 2, 4),
        layers_per_block: int = 2,
        smoothing: float = 0.5,
        norm_num_groups: int = 32,
    ) -> None:
        super().__init__()
        widths = [base_channels * multiplier for multiplier in channel_multipliers]
        self.encoder = Encoder(latent_channels, widths, layers_per_block, norm_num_groups)
        self.quant_conv = nn.Conv2d(latent_channels, latent_channels, 3, padding=1)
        self.quantize = ResidualCodebook(num_codes, latent_channels, smoothing)
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, 3, padding=1)
        self.decoder = Decoder(latent_channels, widths, layers_per_block + 1, norm_num_groups)

    @property
    def patch_size(self) -> int:
        """Side s of a cell in pixels."""
        return 2 ** (len(self.config.channel_multipliers) - 1)

    @apply_forward_hook
    def encode(self, pixel_values: Tensor) -> Tensor:
        """Encode images ``(B, 3, N s, N s)`` in [-1, 1] to float32 features ``(B, d, N, N)``, not yet quantised."""
        return self.quant_conv(self.encoder(pixel_values.to(self.quant_conv.weight))).float()

    def encode_scales(self, pixel_values: Tensor, sides: Sequence[int], num_scales: int | None = None) -> Quantised:
        """Encode and quantise images, see ``ResidualCodebook``.

        Raises:
            ValueError: If the images have another size than the schedule ends in.
        """
        side = sides[-1] * self.patch_size
        if pixel_values.shape[-2:] != (side, side):
            height, width = pixel_values.shape[-2:]
            raise ValueError(f"the image has {width} x {height} pixels; resize and crop it to {side} x {side}")
        return self.quantize(self.encode(pixel_values), sides, num_scales)

    @apply_forward_hook
    def decode(self, feature: Tensor) -> Tensor:
        """Decode sums of codes ``(B, d, N, N)`` to float32 images ``(B, 3, N s, N s)`` in [-1, 1]."""
        hidden = self.post_quant_conv(feature.to(self.post_quant_conv.weight))
        return self.decoded(self.decoder, hidden, self.patch_size).float().clamp(-1, 1)
