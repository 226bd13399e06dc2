"""Pretrains the world's image tokenizer: an autoencoder whose code is bits on a pyramid of grids."""

from pathlib import Path
from typing import Any

import torch
from diffusers.optimization import get_cosine_schedule_with_warmup
from torch import Tensor

from src.modules.next_scale.infinity.autoencoder import BSQTokenizer
from src.modules.next_scale.infinity.bits import quantise
from src.modules.training.diffusion import per_sample_mse, step_generator
from src.modules.training.ema import AveragedModule
from src.modules.world.autoencoder import code_convolution

REACH = 1.7
"""Deviation of a target's channels in units of a code's, 1 / sqrt(d): six scales lose least of a linear code so."""


class BSQTokenizerPretraining(AveragedModule):
    """Encoder and decoder learn together; the quantiser's gradient is handed straight through.

    At first a linear code, rotated so that all bits carry alike, teaches the encoder, and the decoder sees that code's
    bits; the share of such images falls to none over ``teacher_steps``. Codes have a fixed length, so nothing but the
    commitment loss keeps features within their reach. Some images are decoded from their first scales alone: the sum
    of early codes is then the best picture of that resolution, instead of whatever later scales can mend.

    Args:
        export_dir: Pipeline folder that receives ``vae``.
        code_path: The linear code (safetensors, written by the data module), of as many channels.
        scale_schedule: Rows and columns of each grid, coarse to fine.
        latent_channels: Bits of a cell.
        base_channels: See ``BSQTokenizer``, like the next four.
        channel_multipliers: Of the width.
        layers_per_block: Residual blocks of a resolution.
        patch_size: Pixels of a cell's side.
        norm_num_groups: Of the group norms.
        learning_rate: Peak.
        commitment_weight: Of the squared distance between features and the sum of their codes.
        teacher_weight: Of the squared distance to the linear code, at first.
        teacher_steps: Until the linear code teaches no more; 0 for no teacher.
        early_share: Of the images that are decoded from a random number of scales.
        ema_decay: Of the exported weights.
        init_from: Pipeline folder whose tokenizer to start from, best with ``teacher_steps=0``; None for random ones.
        seed: Of initial weights, of the rotation, and of the choice of scales.
    """

    def __init__(
        self,
        export_dir: str,
        code_path: str,
        scale_schedule: list[list[int]],
        latent_channels: int = 32,
        base_channels: int = 16,
        channel_multipliers: tuple[int, ...] = (1, 2, 4, 8),
        layers_per_block: int = 1,
        patch_size: int = 8,
        norm_num_groups: int = 8,
        learning_rate: float = 2e-3,
        commitment_weight: float = 0.25,
        teacher_weight: float = 0.3,
        teacher_steps: int = 6000,
        early_share: float = 0.2,
        ema_decay: float = 0.999,
        init_from: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.grids = [(rows, columns) for rows, columns in scale_schedule]
        torch.manual_seed(seed)
        tokenizer = BSQTokenizer(
            latent_channels, base_channels, list(channel_multipliers), layers_per_block, patch_size, norm_num_groups
        )
        if init_from:
            tokenizer = BSQTokenizer.from_pretrained(init_from, subfolder="vae", dtype=torch.float32)
        # Half-precision convolutions on CPUs are twice as fast with channels last.
        self.tokenizer = tokenizer.to(memory_format=torch.channels_last)
        self.follow(list(self.tokenizer.parameters()), ema_decay)

    def setup(self, stage: str) -> None:
        """Read the linear code as one strided convolution, and rotate it."""
        self.teacher = code_convolution(self.hparams.code_path)
        width, generator = self.hparams.latent_channels, step_generator(self.hparams.seed, 0, stream=1)
        turn = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q * REACH / width**0.5
        for parameter in self.teacher.parameters():
            parameter.data = (turn @ parameter.view(width, -1)).view_as(parameter)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Image error, commitment, and while there is a teacher the distance to it."""
        generator = step_generator(self.hparams.seed, int(batch["step"]), self.global_rank)
        pixel_values = batch["pixel_values"].contiguous(memory_format=torch.channels_last)
        encoded = self.tokenizer.encode(pixel_values)
        features, lesson = self._taught(encoded, pixel_values, int(batch["step"]), generator)
        sums = torch.stack(quantise(features, self.grids).features, dim=1)
        chosen = self._last_scales(len(sums), generator).to(self.device)
        restored = self.tokenizer.decoder(sums[torch.arange(len(sums), device=self.device), chosen])
        image_loss = per_sample_mse(restored, pixel_values).mean()
        commitment = _squared_distance(features, sums[:, -1].detach())
        self.log_dict({"train/image_loss": image_loss, "train/commitment": commitment, "train/lesson": lesson})
        return image_loss + self.hparams.commitment_weight * commitment + lesson

    def _taught(
        self, encoded: Tensor, pixel_values: Tensor, step: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Features to decode, the teacher's for a share of the images, and the weighted distance to the teacher."""
        steps = self.hparams.teacher_steps
        share = 1 - step / steps if steps else 0.0
        taught = torch.rand(len(encoded), generator=generator) < share
        if share <= 0:
            return encoded, encoded.new_zeros(())
        with torch.no_grad():
            target = self.teacher.to(self.device)(pixel_values).float()
        features = torch.where(taught.to(self.device)[:, None, None, None], target, encoded)
        return features, share * self.hparams.teacher_weight * _squared_distance(encoded, target)

    def _last_scales(self, number: int, generator: torch.Generator) -> Tensor:
        """Index of the last scale that each image is decoded from, ``(B,)``."""
        early = torch.rand(number, generator=generator) < self.hparams.early_share
        any_scale = torch.randint(len(self.grids), (number,), generator=generator)
        return torch.where(early, any_scale, len(self.grids) - 1)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """PSNR in decibel after three scales and after all, mean over images, with the averaged weights."""
        pixel_values = batch["pixel_values"]
        with self.averaged_weights():
            sums = quantise(self.tokenizer.encode(pixel_values), self.grids).features
            restored = {"val/psnr": self.tokenizer.decode(sums[-1]), "val/psnr_scale_3": self.tokenizer.decode(sums[2])}
        for name, images in restored.items():
            psnr = 10 * torch.log10(4 / per_sample_mse(images, pixel_values)).mean()
            self.log(name, psnr, batch_size=len(pixel_values), prog_bar=True, sync_dist=True)

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW with warm-up and cosine decay."""
        optimizer = torch.optim.AdamW(self.tokenizer.parameters(), lr=self.hparams.learning_rate, weight_decay=1e-4)
        steps = self.trainer.max_steps
        schedule = get_cosine_schedule_with_warmup(optimizer, min(200, steps // 10), steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def export(self) -> dict[str, str]:
        """Write the averaged weights as ``vae`` of an Infinity pipeline."""
        self.ema.copy_to(self.averaged)
        self.tokenizer.save_pretrained(Path(self.hparams.export_dir) / "vae")
        return {"image tokenizer": str(Path(self.hparams.export_dir) / "vae")}


def _squared_distance(features: Tensor, target: Tensor) -> Tensor:
    """Of a cell, mean over all cells: ``(B, d, H, W)`` twice to a number."""
    return ((features - target) ** 2).sum(1).mean()
