"""The image tokenizer of VAR and Switti: convolutions around a residual codebook on a pyramid of square grids."""

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
    """An image in indices of a codebook.

    Attributes:
        indices: For each scale, ``(B, n * n)``, row by row.
        features: For each scale, the sum of everything so far, ``(B, d, N, N)``.
    """

    indices: list[Tensor]
    features: list[Tensor]


class ResidualCodebook(nn.Module):
    """One table of codes for all scales, and four convolutions (phi) that scales of similar size share.

    Everything is computed in float32, whatever the weights: running sums add up many small corrections. And it is
    computed where the codes are: the table is asked for at every scale, when a tokenizer may wait in main memory.

    Args:
        num_codes: Rows of the table.
        channels: Of a code.
        smoothing: Share of the convolution in phi; the rest is the code itself.
    """

    def __init__(self, num_codes: int, channels: int, smoothing: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_codes, channels)
        self.phi = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(4))
        self.smoothing = smoothing

    def codes(self, weights: Tensor) -> Tensor:
        """Rows of the table, ``(B, n * n) -> (B, d, n, n)``; or, of probabilities ``(B, n * n, V)``, their mean."""
        table = self.embedding.weight.to(weights.device, torch.float32)
        rows = weights @ table if weights.is_floating_point() else table[weights]
        return rows.mT.unflatten(-1, (round(rows.shape[1] ** 0.5), -1))

    def nearest(self, features: Tensor) -> Tensor:
        """Index of the nearest code for every cell, ``(B, d, n, n) -> (B, n * n)``."""
        cells, table = features.flatten(2).mT, self.embedding.weight.float()
        return (table.square().sum(-1) - 2 * cells @ table.mT).argmin(-1)

    def contribution(self, codes: Tensor, scale_index: int, num_scales: int, side: int) -> Tensor:
        """What a scale adds to the running sum: ``phi(bicubic(codes))``, ``(B, d, n, n) -> (B, d, side, side)``."""
        if codes.shape[-1] != side:
            codes = interpolate(codes, size=(side, side), mode="bicubic", align_corners=False)
        weight, bias = self.phi[phi_index(scale_index, num_scales, len(self.phi))].parameters()
        smoothed = conv2d(codes, weight.to(codes), bias.to(codes), padding=1)
        return torch.lerp(codes, smoothed, self.smoothing)

    def forward(self, features: Tensor, sides: Sequence[int], num_scales: int | None = None) -> Quantised:
        """Describe features scale by scale: each names the codes nearest to what is left of them on its grid.

        Args:
            features: Of the encoder, ``(B, d, N, N)``.
            sides: The whole schedule; which phi a scale has depends on its length.
            num_scales: Stop after so many; None for all.
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
    """Which phi a scale has: the nearest of ``count`` ticks on the way from the first scale to the last."""
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
        """Added to what came in."""
        queries, keys, values = self.qkv(self.norm(hidden)).flatten(2).mT.unsqueeze(1).chunk(3, dim=-1)
        attended = scaled_dot_product_attention(queries, keys, values).squeeze(1)
        return hidden + self.proj_out(attended.mT.unflatten(-1, hidden.shape[-2:]))


class Level(nn.Module):
    """Blocks of one resolution, each with attention behind it at the lowest, and the way to the next resolution."""

    def __init__(self, channels: Sequence[int], groups: int, attends: bool, resampling: nn.Module | None) -> None:
        super().__init__()
        pairs = zip(channels[:-1], channels[1:], strict=True)
        self.block = nn.ModuleList(ResidualBlock(before, after, groups) for before, after in pairs)
        self.attn = nn.ModuleList(PixelAttention(after, groups) if attends else nn.Identity() for after in channels[1:])
        self.resampling = resampling or nn.Identity()

    def forward(self, hidden: Tensor) -> Tensor:
        """Blocks, then half or twice the size."""
        for block, attn in zip(self.block, self.attn, strict=True):
            hidden = attn(block(hidden))
        return self.resampling(hidden)


class Halving(nn.Conv2d):
    """A 3 x 3 convolution of stride 2 that pads on the right and below only."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, stride=2)

    def forward(self, hidden: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, H / 2, W / 2)``."""
        return super().forward(pad(hidden, (0, 1, 0, 1)))


class Doubling(nn.Conv2d):
    """Each pixel becomes four, then a 3 x 3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1)

    def forward(self, hidden: Tensor) -> Tensor:
        """``(B, C, H, W) -> (B, C, 2 H, 2 W)``."""
        return super().forward(interpolate(hidden, scale_factor=2.0, mode="nearest"))


class Middle(nn.Module):
    """Attention between two blocks, at the lowest resolution."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels, groups)
        self.attn_1 = PixelAttention(channels, groups)
        self.block_2 = ResidualBlock(channels, channels, groups)

    def forward(self, hidden: Tensor) -> Tensor:
        """One after the other."""
        return self.block_2(self.attn_1(self.block_1(hidden)))


class Encoder(nn.Module):
    """``(B, 3, N s, N s) -> (B, d, N, N)``; ``down[0]`` is the highest resolution, every level but the last halves."""

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
        """Features, not quantised."""
        hidden = self.conv_in(pixel_values)
        for level in self.down:
            hidden = level(hidden)
        return self.conv_out(silu(self.norm_out(self.mid(hidden))))


class Decoder(nn.Module):
    """``(B, d, N, N) -> (B, 3, N s, N s)``; ``up[0]`` is the highest resolution, every other level doubles."""

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
        """Pixel values, not clamped."""
        hidden = self.mid(self.conv_in(feature))
        for level in reversed(self.up):
            hidden = level(hidden)
        return self.conv_out(silu(self.norm_out(hidden)))


class VQVAE(TiledDecoding, PartlyExact, ModelMixin, ConfigMixin):
    """Images to indices of a codebook on a pyramid of grids, and sums of codes back to images.

    What chooses codes stays in float32 when the model is loaded in half precision: rounded, it would choose others.
    The decoder attends to all cells of its lowest resolution; with tiling to those of one square.

    Args:
        latent_channels: Of a code.
        num_codes: In the codebook.
        base_channels: Width at full resolution.
        channel_multipliers: Of the width, from full resolution down; each one after the first halves the size.
        layers_per_block: Residual blocks of a resolution in the encoder; the decoder has one more.
        smoothing: See ``ResidualCodebook``.
        norm_num_groups: Of the group norms.
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
        """Pixels of a cell's side."""
        return 2 ** (len(self.config.channel_multipliers) - 1)

    @apply_forward_hook
    def encode(self, pixel_values: Tensor) -> Tensor:
        """Images ``(B, 3, N s, N s)`` in [-1, 1] to float32 features ``(B, d, N, N)``, not quantised."""
        return self.quant_conv(self.encoder(pixel_values.to(self.quant_conv.weight))).float()

    def encode_scales(self, pixel_values: Tensor, sides: Sequence[int], num_scales: int | None = None) -> Quantised:
        """Images in indices and running sums, see ``ResidualCodebook``.

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
        """Sums of codes ``(B, d, N, N)`` to float32 images in [-1, 1]."""
        hidden = self.post_quant_conv(feature.to(self.post_quant_conv.weight))
        return self.decoded(self.decoder, hidden, self.patch_size).float().clamp(-1, 1)
