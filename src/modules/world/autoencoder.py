"""Pretrains the world's AutoencoderKL: the linear code teaches the encoder, the decoder sharpens what it keeps."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusers.optimization import get_cosine_schedule_with_warmup
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from src.data.world.linear_code import PATCH, LinearCode
from src.modules.training.diffusion import per_sample_mse, step_generator
from src.modules.training.ema import AveragedModule

LOG_VARIANCE = -6.0
"""Of the posterior: a deviation of 0.05 on latents of unit variance."""


class AutoencoderPretraining(AveragedModule):
    """The latent space is fixed in advance, so that the diffusion model can be trained at the same time.

    Encoder: regression on the linear code's latents. Decoder: from those latents plus a little noise to the image; it
    sees neighbouring cells, so it restores edges that eight-pixel patches of a linear code cannot.

    Args:
        export_dir: Pipeline folder that receives ``vae``.
        code_path: The linear code (safetensors, written by the data module).
        block_out_channels: Widths at 64, 32, 16 and 8 pixels.
        latent_channels: Of the code.
        learning_rate: Peak.
        ema_decay: Of the exported weights.
        decoder_noise: Deviation of the noise on the decoder's input.
        seed: Of noise and initial weights.
    """

    def __init__(
        self,
        export_dir: str,
        code_path: str,
        block_out_channels: list[int],
        latent_channels: int = 24,
        learning_rate: float = 2e-3,
        ema_decay: float = 0.999,
        decoder_noise: float = 0.05,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
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
        self.follow(list(self.vae.parameters()), ema_decay)

    def setup(self, stage: str) -> None:
        """Read the code as one strided convolution."""
        self.code = code_convolution(self.hparams.code_path)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Image error of the decoder plus latent error of the encoder."""
        pixel_values = batch["pixel_values"]
        with torch.no_grad():
            code = self.code.to(self.device)(pixel_values).float()
        posterior = self.vae.encode(pixel_values).latent_dist
        encoder_loss = F.mse_loss(posterior.mean.float(), code) + 0.01 * ((posterior.logvar - LOG_VARIANCE) ** 2).mean()
        generator = step_generator(self.hparams.seed, int(batch["step"]), self.global_rank)
        noise = torch.randn(code.shape, generator=generator).to(code)
        restored = self.vae.decode(code + self.hparams.decoder_noise * noise).sample.float()
        decoder_loss = F.mse_loss(restored, pixel_values)
        self.log_dict({"train/decoder_loss": decoder_loss, "train/encoder_loss": encoder_loss}, prog_bar=True)
        return decoder_loss + encoder_loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """PSNR in decibel through encoder and decoder, mean over images, with the averaged weights."""
        pixel_values = batch["pixel_values"]
        with self.averaged_weights():
            restored = self.vae.decode(self.vae.encode(pixel_values).latent_dist.mode()).sample.float().clamp(-1, 1)
        psnr = 10 * torch.log10(4 / per_sample_mse(restored, pixel_values)).mean()
        self.log("val/psnr", psnr, batch_size=len(pixel_values), prog_bar=True, sync_dist=True)

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW with warm-up and cosine decay."""
        optimizer = torch.optim.AdamW(self.vae.parameters(), lr=self.hparams.learning_rate, weight_decay=1e-4)
        steps = self.trainer.max_steps
        schedule = get_cosine_schedule_with_warmup(optimizer, min(200, steps // 10), steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def export(self) -> dict[str, str]:
        """Write the averaged weights as ``vae`` of a Stable Diffusion pipeline."""
        self.ema.copy_to(self.vae.parameters())
        self.vae.save_pretrained(Path(self.hparams.export_dir) / "vae")
        return {"autoencoder": str(Path(self.hparams.export_dir) / "vae")}


def code_convolution(path: str) -> nn.Conv2d:
    """A linear code's encoder as one strided convolution."""
    code = LinearCode.load(path)
    kernels = torch.from_numpy(code.components / code.scales[:, None]).view(-1, 3, PATCH, PATCH)
    convolution = nn.Conv2d(3, len(kernels), PATCH, stride=PATCH)
    convolution.weight.data.copy_(kernels)
    assert convolution.bias is not None
    convolution.bias.data.copy_(-(kernels.flatten(1) @ torch.from_numpy(code.mean)))
    return convolution.requires_grad_(False)
