"""Convolutional encoder and decoder around a residual codebook: the image tokenizer of VAR and Switti."""

from collections.abc import Sequence

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad, scaled_dot_product_attention, silu

from src.modules.scale_ar.bsq_autoencoder import ResidualBlock
from src.modules.scale_ar.codebook import Quantised, ResidualCodebook
from src.modules.scale_ar.exact_parts import PartlyExact
from src.modules.scale_ar.tiles import TiledDecoding


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
