"""Pretrain the world's image tokenizer, an autoencoder whose code is bits on a pyramid of grids."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from src.data.ranges import Count, Number, Seed, Share, Weight
from src.modules.next_scale.infinity.autoencoder import BSQTokenizer
from src.modules.next_scale.infinity.bits import quantise
from src.modules.training.diffusion import per_sample_mse, step_generator
from src.modules.training.learner import Learner, TrainingRecord
from src.modules.world.autoencoder import code_convolution, psnr

REACH = 1.7
"""Deviation of the teacher's channels in units of a code's, 1 / sqrt(d): with it six scales lose least of the code."""


@dataclass(frozen=True)
class TokenizerSize:
    """Size of a ``BSQTokenizer``.

    Attributes:
        latent_channels: Bits of a cell.
        base_channels: Width at full resolution.
        channel_multipliers: Factors of the width, from full resolution down.
        layers_per_block: Residual blocks of a resolution.
        patch_size: Side of a cell in pixels.
        norm_num_groups: Groups of the group norms.
    """

    latent_channels: Count = 32
    base_channels: Count = 16
    channel_multipliers: Sequence[int] = (1, 2, 4, 8)
    layers_per_block: Count = 1
    patch_size: Count = 8
    norm_num_groups: Count = 8

    def build(self) -> BSQTokenizer:
        """Build a tokenizer with random weights."""
        widths = (self.latent_channels, self.base_channels, list(self.channel_multipliers))
        return BSQTokenizer(*widths, self.layers_per_block, self.patch_size, self.norm_num_groups)


class BSQTokenizerPretraining(Learner):
    """Trains encoder and decoder together; the gradient passes straight through the quantiser.

    At first a linear code, rotated so that all bits carry equally much, teaches the encoder, and the decoder sees that
    code's bits; the share of such images falls to 0 over ``teacher_steps``. Codes have a fixed length, so features need
    the commitment loss to stay near them. Some images are decoded from their first scales only, so that the sum of
    early codes is the best image of that resolution and not a mere start for later scales.

    Args:
        export_dir: Pipeline folder that receives ``vae``.
        code_path: The linear code (safetensors, written by the data module), of as many channels.
        scale_schedule: Rows and columns of each grid, coarse to fine.
        size: Size of the tokenizer.
        commitment_weight: Weight of the squared distance between features and the sum of their codes.
        teacher_weight: Initial weight of the squared distance to the linear code.
        teacher_steps: Number of steps that the linear code teaches for; 0 for no teacher.
        early_share: Share of the images that are decoded from a random number of scales.
        init_from: Pipeline folder whose tokenizer to start from, best with ``teacher_steps=0``; None for a new one.
        seed: Seed of the initial weights, the rotation and the choice of scales.
    """

    def __init__(
        self,
        export_dir: str,
        code_path: str,
        scale_schedule: list[list[int]],
        size: TokenizerSize | None = None,
        commitment_weight: Weight = 0.25,
        teacher_weight: Weight = 0.3,
        teacher_steps: Number = 6000,
        early_share: Share = 0.2,
        init_from: str | None = None,
        seed: Seed = 0,
    ) -> None:
        super().__init__()
        self.export_dir, self.code_path, self.seed = export_dir, code_path, seed
        self.commitment_weight, self.early_share = commitment_weight, early_share
        self.teacher_weight, self.teacher_steps = teacher_weight, teacher_steps
        self.grids = [(rows, columns) for rows, columns in scale_schedule]
        torch.manual_seed(seed)
        tokenizer = (size or TokenizerSize()).build()
        if init_from:
            tokenizer = BSQTokenizer.from_pretrained(init_from, subfolder="vae", dtype=torch.float32)
        # Half-precision convolutions on CPUs are twice as fast with channels last.
        self.tokenizer = tokenizer.to(memory_format=torch.channels_last)

    def prepare(self, data: Any, device: torch.device, rank: int = 0, world_size: int = 1, num_steps: int = 0) -> None:
        """Read the linear code as one strided convolution, and rotate it."""
        self.teacher = code_convolution(self.code_path)
        width, generator = self.teacher.out_channels, step_generator(self.seed, 0, stream=1)
        rotation = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q * REACH / width**0.5
        for parameter in self.teacher.parameters():
            parameter.data = (rotation @ parameter.view(width, -1)).view_as(parameter)
        self.teacher.to(device)

    def losses(self, batch: dict[str, Any], generators: list[Generator]) -> dict[str, Tensor]:
        """Compute the image error ``(B,)``, the commitment loss, and the weighted distance to the teacher, if any."""
        pixel_values = batch["pixel_values"].contiguous(memory_format=torch.channels_last)
        encoded = self.tokenizer.encode(pixel_values)
        features, lesson = self._taught(encoded, pixel_values, int(batch["step"]), generators[0])
        sums = torch.stack(quantise(features, self.grids).features, dim=1)  # (B, scales, d, H, W)
        chosen = self._last_scales(len(sums), generators[0]).to(self.device)
        restored = self.tokenizer.decoder(sums[torch.arange(len(sums), device=self.device), chosen])
        commitment = _squared_distance(features, sums[:, -1].detach())
        return {"image_loss": per_sample_mse(restored, pixel_values), "commitment": commitment, "lesson": lesson}

    def reduce(self, losses: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Minimise the weighted sum of the losses."""
        means = {name: each.mean() for name, each in losses.items()}
        return means["image_loss"] + self.commitment_weight * means["commitment"] + means["lesson"], means

    def _taught(self, encoded: Tensor, pixel_values: Tensor, step: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """Return the features to decode, some of them the teacher's, and the weighted distance to the teacher."""
        share = 1 - step / self.teacher_steps if self.teacher_steps else 0.0
        taught = torch.rand(len(encoded), generator=generator) < share
        if share <= 0:
            return encoded, encoded.new_zeros(())
        with torch.no_grad():
            target = self.teacher(pixel_values).float()
        features = torch.where(taught.to(self.device)[:, None, None, None], target, encoded)
        return features, share * self.teacher_weight * _squared_distance(encoded, target)

    def _last_scales(self, number: int, generator: Generator) -> Tensor:
        """Draw the index of the last scale that each image is decoded from, ``(B,)``."""
        early = torch.rand(number, generator=generator) < self.early_share
        any_scale = torch.randint(len(self.grids), (number,), generator=generator)
        return torch.where(early, any_scale, len(self.grids) - 1)

    def validate(self, batch: dict[str, Any], generators: list[Generator]) -> dict[str, Tensor]:
        """Compute the PSNR in decibel after all scales and after three."""
        pixel_values = batch["pixel_values"]
        sums = quantise(self.tokenizer.encode(pixel_values), self.grids).features
        whole, early = self.tokenizer.decode(sums[-1]), self.tokenizer.decode(sums[2])
        return {"psnr": psnr(whole, pixel_values), "psnr_scale_3": psnr(early, pixel_values)}

    def export(self, record: TrainingRecord) -> dict[str, str]:
        """Write the folder ``vae`` of an Infinity pipeline."""
        folder = Path(self.export_dir) / "vae"
        self.tokenizer.save_pretrained(folder)
        return {"image tokenizer": str(folder)}


def _squared_distance(features: Tensor, target: Tensor) -> Tensor:
    """Squared distance of two features ``(B, d, H, W)`` in a cell, averaged over all cells."""
    return ((features - target) ** 2).sum(1).mean()
