"""The path that denoising takes from pure noise to an image."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Trajectory:
    """Every step of B images: where they are, and what is predicted there.

    Attributes:
        latents: Latents before each of T steps and after the last one, float32 on the CPU, ``(T + 1, B, C, h, w)``.
        noise: What the scheduler is told in each step, guidance included: noise, or velocity where the model predicts
            that, ``(T, B, C, h, w)``.
    """

    latents: Tensor
    noise: Tensor

    def part(self, places: Sequence[int]) -> "Trajectory":
        """The trajectories of some of the images."""
        return Trajectory(self.latents[:, list(places)], self.noise[:, list(places)])

    @staticmethod
    def joined(parts: Sequence["Trajectory"], places: Sequence[int]) -> "Trajectory":
        """Put parts together.

        Args:
            parts: Trajectories of equally many steps.
            places: Where each of their images belongs, part after part.
        """
        order = torch.tensor(places).argsort()
        latents, noise = (torch.cat(each, 1) for each in zip(*((one.latents, one.noise) for one in parts), strict=True))
        return Trajectory(latents[:, order], noise[:, order])
