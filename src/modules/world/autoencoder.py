"""Pretrain the world's AutoencoderKL: the encoder imitates a linear code, the decoder learns to restore images."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Generator, Tensor, nn
from torch.nn import functional as F  # noqa: N812

from src.data.ranges import Count, Seed, Weight
from src.data.world.linear_code import PATCH, LinearCode
from src.modules.training.diffusion import per_sample_mse
from src.modules.training.learner import Learner, TrainingRecord

LOG_VARIANCE = -6.0
"""Target of the posterior's log variance: a standard deviation of 0.05 on latents of unit variance."""


class AutoencoderPretraining(Learner):
    """Trains encoder and decoder on a latent space that is fixed, so that the diffusion model can be trained meanwhile.

    The encoder learns by regression on the latents of the linear code. The decoder learns to restore the image from
    these latents plus a little noise; it sees neighbouring cells, so it restores edges better than the linear code.

    Args:
        export_dir: Pipeline folder that receives ``vae``.
        code_path: The linear code (safetensors, written by the data module).
        block_out_channels: Widths at 64, 32, 16 and 8 pixels.
        latent_channels: Channels of the code.
        decoder_noise: Standard deviation of the noise on the decoder's input.
        seed: Seed of the noise and the initial weights.
    """

    def __init__(
        self,
        export_dir: str,
        code_path: str,
        block_out_channels: list[Count],
        latent_channels: Count = 24,
        decoder_noise: Weight = 0.05,
        seed: Seed = 0,
    ) -> None:
        super().__init__()
        self.export_dir, self.code_path, self.decoder_noise, self.seed = export_dir, code_path, decoder_noise, seed
        torch.manual_seed(seed)
        self.vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * len(block_out_channels),
            up_block_types=("UpDecoderBlock2D",) * len(block_out_channels),
            block_out_channels=tuple(block_out_channels),
            layers_per_block=1,
            latent_channels=latent_channels,
            norm_num_groups=8,
            sample_size=64,
            mid_block_add_attention=False,
            scaling_factor=1.0,
        )

    def prepare(self, data: Any, device: torch.device, rank: int = 0, world_size: int = 1, num_steps: int = 0) -> None:
        """Read the linear code as one strided convolution."""
        self.code = code_convolution(self.code_path).to(device)

    def losses(self, batch: dict[str, Any], generators: list[Generator]) -> dict[str, Tensor]:
        """Compute the image error of the decoder and the latent error of the encoder."""
        pixel_values = batch["pixel_values"]
        with torch.no_grad():
            code = self.code(pixel_values).float()
        posterior = self.vae.encode(pixel_values).latent_dist
        encoder_loss = F.mse_loss(posterior.mean.float(), code) + 0.01 * ((posterior.logvar - LOG_VARIANCE) ** 2).mean()
        noise = torch.randn(code.shape, generator=generators[0]).to(code)
        restored = self.vae.decode(code + self.decoder_noise * noise).sample.float()
        return {"decoder_loss": F.mse_loss(restored, pixel_values), "encoder_loss": encoder_loss}

    def reduce(self, losses: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Minimise the sum of both errors."""
        return losses["decoder_loss"] + losses["encoder_loss"], losses

    def validate(self, batch: dict[str, Any], generators: list[Generator]) -> dict[str, Tensor]:
        """Compute the PSNR in decibel through encoder and decoder."""
        pixel_values = batch["pixel_values"]
        restored = self.vae.decode(self.vae.encode(pixel_values).latent_dist.mode()).sample.float().clamp(-1, 1)
        return {"psnr": psnr(restored, pixel_values)}

    def export(self, record: TrainingRecord) -> dict[str, str]:
        """Write the folder ``vae`` of a Stable Diffusion pipeline."""
        folder = Path(self.export_dir) / "vae"
        self.vae.save_pretrained(folder)
        return {"autoencoder": str(folder)}


def psnr(restored: Tensor, pixel_values: Tensor) -> Tensor:
    """Compute the mean PSNR in decibel of images in [-1, 1], repeated for each of them, ``(B,)``."""
    return (10 * torch.log10(4 / per_sample_mse(restored, pixel_values)).mean()).expand(len(pixel_values))


def code_convolution(path: str) -> nn.Conv2d:
    """Build a linear code's encoder as one strided convolution."""
    code = LinearCode.load(path)
    kernels = torch.from_numpy(code.components / code.scales[:, None]).view(-1, 3, PATCH, PATCH)
    convolution = nn.Conv2d(3, len(kernels), PATCH, stride=PATCH)
    convolution.weight.data.copy_(kernels)
    assert convolution.bias is not None
    convolution.bias.data.copy_(-(kernels.flatten(1) @ torch.from_numpy(code.mean)))
    return convolution.requires_grad_(False)
