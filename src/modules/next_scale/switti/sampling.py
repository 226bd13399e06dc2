"""Switti in the loop of next-scale prediction: draws codes, adds them up, pools the sum to the next grid.

Shapes: P paths, R rows of a pass, d channels of a code, V codes, n x n cells of a scale, N x N cells of the last.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from src.modules.next_scale.cache import KeyValueCache
from src.modules.next_scale.infinity.bits import pooled
from src.modules.next_scale.loop import Condition, Streams
from src.modules.next_scale.sampling import draw, truncated
from src.modules.next_scale.switti.autoencoder import VQVAE
from src.modules.next_scale.switti.transformer import SwittiTransformer


@dataclass(frozen=True)
class SwittiSampling:
    """How logits are guided and codes are chosen.

    Attributes:
        guidance_scale: The t of the last scale in ``(1 + t) l_c - t l_u``, which grows linearly from 0 at the first; or
            the t of each scale.
        turn_on: The first guided scale.
        turn_off: The first scale after ``turn_on`` that is not guided; None guides all.
        last_scale_temp: Temperature of the scales from ``turn_off`` on.
        more_smooth: Whether codes are mixed instead of chosen, at scales before ``turn_off``.
        smooth_start: The first scale at which codes are mixed.
        top_k: Number of likeliest codes to choose among; 0 for all.
        top_p: Probability of the likeliest codes to choose among; 0 for all.

    Raises:
        ValueError: If one of them is impossible.
    """

    guidance_scale: float | Sequence[float] = 6.0
    turn_on: int = 0
    turn_off: int | None = None
    last_scale_temp: float | None = None
    more_smooth: bool = False
    smooth_start: int = 0
    top_k: int = 400
    top_p: float = 0.95

    def __post_init__(self) -> None:
        """Refuse impossible settings."""
        for name in ("turn_on", "turn_off", "smooth_start", "top_k"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"{name} is {value}; give 0 or more")
        if not 0 <= self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; give a probability from 0 (all codes) to 1")
        if self.last_scale_temp is not None and (self.turn_off is None or self.last_scale_temp <= 0):
            raise ValueError(
                f"last_scale_temp is {self.last_scale_temp} and turn_off is {self.turn_off}; give a positive "
                "temperature, and turn_off, the scale from which it is used"
            )

    def guidance(self, num_scales: int) -> list[float]:
        """Return the guidance ``1 + t`` of each scale; 1 is no guidance.

        Raises:
            ValueError: If a list has another length than the schedule, or a scale is negative.
        """
        given = self.guidance_scale
        ramp = [given * i / (num_scales - 1) for i in range(num_scales)] if isinstance(given, int | float) else given
        if len(ramp) != num_scales or min(ramp) < 0:
            raise ValueError(f"guidance_scale is {given}; give one number >= 0, or {num_scales}, one for each scale")
        stop = num_scales if self.turn_off is None else self.turn_off
        return [1 + t if self.turn_on <= index < stop else 1.0 for index, t in enumerate(ramp)]


class SwittiDraw:
    """Switti as ``loop.generate`` sees it for one call, a ``NextScaleModel``."""

    def __init__(self, transformer: SwittiTransformer, vae: VQVAE, sampling: SwittiSampling) -> None:
        self.transformer, self.vae, self.sampling = transformer, vae, sampling
        self.sides = transformer.sides
        self.num_scales, self.num_blocks = len(self.sides), transformer.config.depth
        self.cache_capacity = transformer.num_tokens if transformer.config.use_ar else None
        self.guidance: Sequence[float] = sampling.guidance(self.num_scales)
        self.stop = self.num_scales if sampling.turn_off is None else sampling.turn_off

    def empty_feature(self, images: int) -> Tensor:
        """Return zeros, ``(images, d, N, N)``, float32."""
        side, weight = self.sides[-1], self.transformer.word_embed.weight
        return torch.zeros(images, weight.shape[1], side, side, device=weight.device)

    def paired(self, scale_index: int) -> bool:
        """Tell whether this scale is guided, or a later one that will attend to it."""
        stop = self.num_scales if self.cache_capacity else scale_index + 1
        return any(scale != 1 for scale in self.guidance[scale_index:stop])

    def logits(
        self, tokens: Tensor | None, scale_index: int, condition: Condition, cache: KeyValueCache, streams: Streams
    ) -> Tensor:
        """Predict logits, divided by the temperature, ``(R, n * n, V)``."""
        logits = self.transformer.scale_logits(tokens, scale_index, condition, cache, streams)
        temperature = self.sampling.last_scale_temp
        return logits if temperature is None or scale_index < self.stop else logits / temperature

    def residual(self, logits: Tensor, noise: Tensor, scale_index: int) -> Tensor:
        """Choose or mix codes, ``(P, d, n, n)``."""
        smooth = self.sampling.more_smooth and self.sampling.smooth_start <= scale_index < self.stop
        found = self.mixture(logits, noise, scale_index) if smooth else self.chosen(logits, noise)
        return self.vae.quantize.codes(found)

    def chosen(self, logits: Tensor, noise: Tensor) -> Tensor:
        """Draw indices of codes, ``(P, n * n)``."""
        return draw(truncated(logits, self.sampling.top_k, self.sampling.top_p), noise)

    def mixture(self, logits: Tensor, noise: Tensor, scale_index: int) -> Tensor:
        """Draw weights of all codes ``(P, n * n, V)`` by Gumbel-softmax, which gets sharper from scale to scale."""
        progress = scale_index / (self.num_scales - 1)
        temperature = max(0.27 * (1 - 0.95 * progress), 0.005)
        # Noise is Exp(1), so -log(noise) has the Gumbel distribution.
        return ((logits * (1 + progress) - noise.log()) / temperature).softmax(-1)

    def accumulate(self, feature: Tensor, residual: Tensor, scale_index: int) -> Tensor:
        """Add the codes, upsampled and smoothed by phi, to the running sum ``(P, d, N, N)``."""
        return feature + self.vae.quantize.contribution(residual, scale_index, self.num_scales, self.sides[-1])

    def next_tokens(self, feature: Tensor, scale_index: int) -> Tensor:
        """Pool the running sum to the grid of the scale, ``(P, n * n, d)``."""
        side = self.sides[scale_index]
        return pooled(feature, (side, side)).flatten(2).mT
