"""Encode images with a stock autoencoder to the latents that its denoiser was trained on."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from src.data.finite import check_finite


@torch.no_grad()
def scaled_latents(vae: Any, pixel_values: Tensor) -> Tensor:
    """Encode images to the posterior's mean, shifted and scaled as the autoencoder's configuration says.

    Args:
        vae: Autoencoder; one that overflows in float16, as its ``force_upcast`` says, encodes in float32.
        pixel_values: Images in [-1, 1], ``(B, 3, H, W)``.

    Returns:
        Latents ``(B, C, H/8, W/8)``, float32, in row-major order as from a file, for training rounds by the layout.

    Raises:
        ValueError: If they are not finite.
    """
    config = vae.config
    with _upcast(vae):
        latents = vae.encode(pixel_values.to(vae.device, vae.dtype)).latent_dist.mode()
    check_finite(latents, "the latents of these images")
    mean, deviation = (getattr(config, name, None) for name in ("latents_mean", "latents_std"))
    if mean is not None and deviation is not None:  # Some autoencoders of SDXL have one for each channel.
        mean, deviation = (torch.tensor(each).view(1, -1, 1, 1).to(latents) for each in (mean, deviation))
        return ((latents - mean) * config.scaling_factor / deviation).float().contiguous()
    if shift := getattr(config, "shift_factor", None):
        latents = latents - shift
    return (latents * config.scaling_factor).float().contiguous()


@contextlib.contextmanager
def _upcast(vae: Any) -> Iterator[None]:
    if vae.dtype != torch.float16 or not vae.config.force_upcast:
        yield
        return
    # Torch's own method: that of diffusers warns of every change of precision, though this one is undone.
    nn.Module.to(vae, torch.float32)
    try:
        yield
    finally:
        nn.Module.to(vae, torch.float16)
