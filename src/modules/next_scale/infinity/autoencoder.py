"""Infinity's image tokenizer: a convolutional encoder and decoder around bitwise codes.

Shapes: B images, C channels, d bits of a cell, H x W cells, a cell is s x s pixels.
"""

from collections.abc import Sequence

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad, silu

from src.modules.next_scale.loading import PartlyExact
from src.modules.next_scale.tiles import TiledDecoding


def _norm(channels: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(24 if channels % groups and channels % 24 == 0 else groups, channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut, ``(B, in, H, W) -> (B, out, H, W)``."""

    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(in_channels, groups), nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2, self.conv2 = _norm(out_channels, groups), nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, hidden: Tensor) -> Tensor:
        """Apply norm, SiLU and convolution twice, and add the shortcut."""
        change = self.conv1(silu(self.norm1(hidden)))
        return self.nin_shortcut(hidden) + self.conv2(silu(self.norm2(change)))


class Level(nn.Module):
    """The residual blocks of one resolution, and the convolution that leads to the next resolution, if any."""

    def __init__(self, channels: Sequence[int], groups: int, downsample: bool = False, upsample: bool = False) -> None:
        super().__init__()
        pairs = zip(channels[:-1], channels[1:], strict=True)
        self.block = nn.ModuleList(ResidualBlock(before, after, groups) for before, after in pairs)
        self.downsample = nn.Conv2d(channels[-1], channels[-1], 3, stride=2) if downsample else None
        self.upsample = nn.Conv2d(channels[-1], channels[-1], 3, padding=1) if upsample else None

    def forward(self, hidden: Tensor) -> Tensor:
        """Apply the blocks, then halve or double the size."""
        for block in self.block:
            hidden = block(hidden)
        if self.downsample is not None:
            hidden = self.downsample(pad(hidden, (0, 1, 0, 1)))
        if self.upsample is not None:
            hidden = self.upsample(interpolate(hidden, scale_factor=2.0, mode="nearest"))
        return hidden


class Middle(nn.Module):
    """Two residual blocks at the lowest resolution."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels, groups)
        self.block_2 = ResidualBlock(channels, channels, groups)

    def forward(self, hidden: Tensor) -> Tensor:
        """Apply one after the other, ``(B, C, H, W) -> (B, C, H, W)``."""
        return self.block_2(self.block_1(hidden))


class Encoder(nn.Module):
    """Images to features, ``(B, 3, H s, W s) -> (B, d, H, W)`` with ``s = 2 ** halvings``."""

    def __init__(self, latent_channels: int, widths: Sequence[int], blocks: int, groups: int, halvings: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        before = [widths[0], *widths[:-1]]
        self.down = nn.ModuleList(
            Level([before[i], *[width] * blocks], groups, downsample=i < halvings) for i, width in enumerate(widths)
        )
        self.mid = Middle(widths[-1], groups)
        self.norm_out = _norm(widths[-1], groups)
        self.conv_out = nn.Conv2d(widths[-1], latent_channels, 3, padding=1)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return features that are not yet quantised."""
        hidden = self.conv_in(pixel_values)
        for level in self.down:
            hidden = level(hidden)
        return self.conv_out(silu(self.norm_out(self.mid(hidden))))


class Decoder(nn.Module):
    """Sums of codes to images, ``(B, d, H, W) -> (B, 3, H s, W s)``; ``up[0]`` is the highest resolution."""

    def __init__(self, latent_channels: int, widths: Sequence[int], blocks: int, groups: int, halvings: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(latent_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], groups)
        before = [*widths[1:], widths[-1]]
        self.up = nn.ModuleList(
            Level([before[i], *[width] * blocks], groups, upsample=1 <= i <= halvings) for i, width in enumerate(widths)
        )
        self.norm_out = _norm(widths[0], groups)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, feature: Tensor) -> Tensor:
        """Return pixel values that are not yet clamped."""
        hidden = self.mid(self.conv_in(feature))
        for level in reversed(self.up):
            hidden = level(hidden)
        return self.conv_out(silu(self.norm_out(hidden)))


class BSQTokenizer(TiledDecoding, PartlyExact, ModelMixin, ConfigMixin):
    """Encodes images to features, which ``bits.quantise`` turns into bits, and decodes sums of codes to images.

    The encoder stays in float32 when the tokenizer is loaded in half precision: a bit is the sign of a feature, and
    rounding would flip some that are near zero.

    Args:
        latent_channels: Bits d of a cell.
        base_channels: Width at full resolution.
        channel_multipliers: Factors of the width, from full resolution down.
        layers_per_block: Residual blocks of a resolution in the encoder; the decoder has one more.
        patch_size: Side s of a cell in pixels, a power of 2.
        norm_num_groups: Groups of the group norms; 24 for widths that 24 divides but this does not.

    Raises:
        ValueError: If there are fewer resolutions than halvings.
    """

    exact = ("encoder",)

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 32,
        base_channels: int = 128,
        channel_multipliers: Sequence[int] = (1, 2, 4, 4, 4),
        layers_per_block: int = 2,
        patch_size: int = 16,
        norm_num_groups: int = 32,
    ) -> None:
        super().__init__()
        halvings = patch_size.bit_length() - 1
        if patch_size != 2**halvings or halvings >= len(channel_multipliers):
            raise ValueError(
                f"patch_size is {patch_size}; with {len(channel_multipliers)} channel_multipliers give a power of 2 up "
                f"to {2 ** (len(channel_multipliers) - 1)}"
            )
        widths = [base_channels * multiplier for multiplier in channel_multipliers]
        self.encoder = Encoder(latent_channels, widths, layers_per_block, norm_num_groups, halvings)
        self.decoder = Decoder(latent_channels, widths, layers_per_block + 1, norm_num_groups, halvings)

    @apply_forward_hook
    def encode(self, pixel_values: Tensor) -> Tensor:
        """Encode images ``(B, 3, H s, W s)`` in [-1, 1] to float32 features ``(B, d, H, W)``."""
        return self.encoder(pixel_values.to(self.encoder.conv_in.weight)).float()

    @apply_forward_hook
    def decode(self, feature: Tensor) -> Tensor:
        """Decode sums of codes ``(B, d, H, W)`` to float32 images ``(B, 3, H s, W s)`` in [-1, 1]."""
        feature = feature.to(self.decoder.conv_in.weight)
        return self.decoded(self.decoder, feature, self.config.patch_size).float().clamp(-1, 1)
