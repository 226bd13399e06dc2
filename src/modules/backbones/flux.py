"""FLUX.1: joint attention of image and text in double blocks and, behind them, in blocks that keep both in one row.

Shapes: B prompts or images, L tokens, D text width, C latent channels, N patches of 2 x 2 latents.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import FluxPipeline
from torch import Tensor, nn

from src.modules.backbones.base import Backbone, Text
from src.modules.backbones.latents import Packed
from src.modules.backbones.noising import FlowMatching
from src.modules.backbones.tensors import Noised

ROWS_OF_T5 = 512
"""The stock pipeline's."""


class FluxBackbone(FlowMatching, Packed, Backbone):
    """A FLUX.1 pipeline of any size, distilled for guidance (dev) or for few steps (schnell).

    A prompt is rows of T5, where concepts stand, and one pooled vector of CLIP, which stays that of the plain prompt.
    The model reads no negative prompt, and so gets none.
    """

    pipelines = (FluxPipeline,)
    option = "flux_dev"
    joint = "text first"
    switched = True

    @property
    def denoiser(self) -> Any:
        """The transformer."""
        return self.pipeline.transformer

    def encoders(self) -> list[tuple[Any, nn.Module]]:
        """T5, whose tokenizer locates concepts, and CLIP."""
        of = self.pipeline
        of.tokenizer_2.model_max_length = ROWS_OF_T5
        return [(of.tokenizer_2, of.text_encoder_2), (of.tokenizer, of.text_encoder)]

    @property
    def last_timestep(self) -> float:
        """The timestep of pure noise, as the transformer is told it."""
        return 1.0

    @property
    def resolution(self) -> int:
        """Native side of an image in pixels, which the autoencoder's configuration tells alone."""
        return int(self.vae.config.sample_size)

    def negatives(self, prompts: Sequence[str]) -> dict[str, Any]:
        """Return nothing: guidance is distilled into the model, and no text leads away."""
        return {}

    def encode_ids(self, ids: Sequence[Tensor]) -> Text:
        """Encode token ids ``(B, L)``: T5's last states, and CLIP's pooled text."""
        t5, clip = (tokens.to(encoder.device) for tokens, encoder in zip(ids, self.text_encoders, strict=True))
        pooled = self.text_encoders[1](clip).pooler_output
        return Text(self.text_encoders[0](t5)[0], pooled)

    def grid(self, told: Mapping[str, Any]) -> tuple[int, int]:
        """Return the rows and columns of patches: the places of the last one tell them."""
        _, row, column = told["img_ids"][-1].tolist()
        return int(row) + 1, int(column) + 1

    def denoise(self, noised: Noised, text: Text, size_ids: Tensor | None = None) -> Tensor:
        """Predict the velocity, ``(B, C, h, w)``, with the guidance of ``sampling`` where the model takes one."""
        number, _, height, width = noised.noisy_latents.shape
        grid = (height // 2, width // 2)
        places = self.pipeline._prepare_latent_image_ids(number, *grid, self.device, self.dtype)  # (N, 3)
        guidance = torch.full((number,), float(self.sampling["guidance_scale"]), device=self.device)
        patches = self.denoiser(
            hidden_states=self.packed(noised.noisy_latents.to(self.dtype)),
            timestep=noised.timesteps.to(self.dtype) / self.noise_scheduler.config.num_train_timesteps,
            guidance=guidance if self.denoiser.config.guidance_embeds else None,
            pooled_projections=text.pooled_prompt_embeds.to(self.dtype),  # type: ignore[union-attr]
            encoder_hidden_states=text.prompt_embeds.to(self.dtype),
            txt_ids=torch.zeros(text.prompt_embeds.shape[1], 3, device=self.device, dtype=self.dtype),
            img_ids=places,
        ).sample  # (B, N, 4 C)
        return self.unpacked(patches, grid)
