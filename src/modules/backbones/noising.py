"""How images become noise in training, and what a denoiser must predict of them: by diffusion or by flow matching.

Shapes: B images, C latent channels.
"""

from typing import Any

import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from src.modules.backbones.tensors import Noised
from src.modules.training.diffusion import diffusion_target, draw_flow, draw_noise


class Diffusion:
    """The part of a backbone that knows its noise: here that of DDPM, by betas.

    Attributes:
        noise_scheduler: Noise schedule of training; its configuration has ``num_train_timesteps``.
    """

    pipeline: Any
    noise_scheduler: Any

    def training_schedule(self) -> Any:
        """Make the noise schedule of training from the checkpoint's."""
        return DDPMScheduler.from_config(self.pipeline.scheduler.config)

    @property
    def last_timestep(self) -> float:
        """The timestep of pure noise, as the denoiser is told it."""
        return float(self.noise_scheduler.config.num_train_timesteps)

    def corrupt(self, latents: Tensor, generators: list[torch.Generator]) -> Noised:
        """Add noise at random timesteps; the draw of a sample depends only on its own CPU generator."""
        noise, timesteps = draw_noise(latents, self.noise_scheduler.config.num_train_timesteps, generators)
        return self.noised(latents, noise, timesteps)

    def noised(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Noised:
        """Compute ``x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) noise``, with noise ``(B, C, h, w)`` and timesteps ``(B,)``."""
        target = diffusion_target(self.noise_scheduler, latents, noise, timesteps)
        return Noised(self.noise_scheduler.add_noise(latents, noise, timesteps), timesteps, target)


class FlowMatching(Diffusion):
    """Noise on a straight path (Lipman et al., arXiv 2210.02747): ``x_s = (1 - s) x_0 + s noise``, s in (0, 1).

    The denoiser predicts the velocity ``noise - x_0``, and s times ``num_train_timesteps`` is the timestep.
    """

    def training_schedule(self) -> Any:
        """Make the schedule of the checkpoint's own path."""
        return FlowMatchEulerDiscreteScheduler.from_config(self.pipeline.scheduler.config)

    def corrupt(self, latents: Tensor, generators: list[torch.Generator]) -> Noised:
        """Add noise at logit-normal times, shifted as the checkpoint's schedule is (arXiv 2403.03206, section 3.1).

        Where the shift depends on the size of an image, times are not shifted, as in diffusers' own trainings.
        """
        (noise, sigmas), config = draw_flow(latents, generators), self.noise_scheduler.config
        if not config.use_dynamic_shifting:
            sigmas = config.shift * sigmas / (1 + (config.shift - 1) * sigmas)
        return self.noised(latents, noise, sigmas * config.num_train_timesteps)

    def noised(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Noised:
        """Compute ``x_s = (1 - s) x_0 + s noise``, with noise ``(B, C, h, w)`` and timesteps ``(B,)``."""
        share = (timesteps.to(latents) / self.noise_scheduler.config.num_train_timesteps).view(-1, 1, 1, 1)
        return Noised((1 - share) * latents + share * noise, timesteps, noise - latents)
