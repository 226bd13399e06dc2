"""What a denoiser reads: encoded prompts, and noisy latents with their targets.

Shapes: B prompts or images, L tokens, D text width, C latent channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""Name of a working precision to itself."""


@dataclass
class Text:
    """Encoded prompts, as a denoiser takes them.

    Attributes:
        prompt_embeds: States of the text encoders, ``(B, L, D)``.
        pooled_prompt_embeds: SDXL's pooled text, ``(B, P)``; None for other models.
        mask: 1 at real tokens, 0 at padding, ``(B, L)``; None where padding is attended to, as in CLIP models.
    """

    prompt_embeds: Tensor
    pooled_prompt_embeds: Tensor | None = None
    mask: Tensor | None = None

    def rows(self, indices: Sequence[int]) -> "Text":
        """Choose prompts, in the given order."""
        at = list(indices)
        pooled, mask = (None if part is None else part[at] for part in (self.pooled_prompt_embeds, self.mask))
        return replace(self, prompt_embeds=self.prompt_embeds[at], pooled_prompt_embeds=pooled, mask=mask)

    def joined(self, other: "Text") -> "Text":
        """Concatenate these prompts and the others; where there is a mask, the shorter ones are padded."""
        if self.mask is not None and other.mask is not None:
            length = max(self.mask.shape[1], other.mask.shape[1])
            self, other = self._padded(length), other._padded(length)

        def both(first: Tensor | None, second: Tensor | None) -> Tensor | None:
            return None if first is None or second is None else torch.cat([first, second])

        return Text(
            torch.cat([self.prompt_embeds, other.prompt_embeds]),
            both(self.pooled_prompt_embeds, other.pooled_prompt_embeds),
            both(self.mask, other.mask),
        )

    def _padded(self, length: int) -> "Text":
        more = length - self.prompt_embeds.shape[1]
        mask = None if self.mask is None else F.pad(self.mask, (0, more))
        return replace(self, prompt_embeds=F.pad(self.prompt_embeds, (0, 0, 0, more)), mask=mask)


@dataclass(frozen=True)
class Noised:
    """Noisy latents, and what the denoiser must predict from them.

    Attributes:
        noisy_latents: Latents ``x_t``, ``(B, C, h, w)``.
        timesteps: Timestep t of each image, ``(B,)``.
        target: Noise or velocity, as the noise schedule says, ``(B, C, h, w)``.
    """

    noisy_latents: Tensor
    timesteps: Tensor
    target: Tensor
