"""What a backbone knows of its latents: how pictures become them and back, and how its denoiser has them.

Shapes: B images, C latent channels, h x w latents, N patches of 2 x 2 latents.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from src.data.identity import joined
from src.modules.backbones.autoencoder import decoded, scaled_latents


class Latents:
    """The part of a backbone that knows its latents: here those of an ``AutoencoderKL`` or one that is called alike."""

    pipeline: Any
    vae: Any
    parts: Any

    @property
    def autoencoder_identity(self) -> str:
        """Hash of the autoencoder's weights, configuration and precision, which name a folder of latents."""
        return joined({"vae": self.parts["vae"], "dtype": str(self.vae.dtype)})

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """Encode images ``(B, 3, H, W)`` in [-1, 1] to scaled latents ``(B, C, H/8, W/8)``, the posterior's mean."""
        return scaled_latents(self.vae, pixel_values)

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Decode scaled latents ``(B, C, h, w)`` to images ``(B, 3, H, W)``, about in [-1, 1], float32."""
        return decoded(self.vae, latents)

    def as_latents(self, states: Tensor, told: Mapping[str, Any]) -> Tensor:
        """Return the latents ``(B, C, h, w)`` in what the denoiser reads or predicts: a mask or variance stands behind.

        Args:
            states: The denoiser's input or output.
            told: The named arguments that the pipeline called it with.
        """
        return states[:, : self.vae.config.latent_channels]


class Packed(Latents):
    """Latents that the denoiser has as a row of patches, ``(B, N, 4 C)``."""

    @abstractmethod
    def grid(self, told: Mapping[str, Any]) -> tuple[int, int]:
        """Return the rows and columns of patches that the denoiser's named arguments speak of."""

    def packed(self, latents: Tensor) -> Tensor:
        """Pack latents ``(B, C, h, w)``."""
        return self.pipeline._pack_latents(latents, *latents.shape)

    def unpacked(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """Undo ``packed``: ``(B, C, h, w)`` of so many rows and columns of patches."""
        number, _, width = patches.shape
        apart = patches.view(number, *grid, width // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
        return apart.reshape(number, width // 4, 2 * grid[0], 2 * grid[1])

    def as_latents(self, states: Tensor, told: Mapping[str, Any]) -> Tensor:
        """As of ``Latents``."""
        return self.unpacked(states, self.grid(told))
