"""Stable Diffusion 1.x, 2.x and XL: a UNet whose cross-attention reads the states of one or two CLIP text encoders."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from torch import Tensor, nn

from src.modules.backbones.base import Backbone, Noised, Text

GLIGEN = "StableDiffusionGLIGENPipeline"


class UNetBackbone(Backbone):
    """A Stable Diffusion or SDXL pipeline of any size.

    One of GLIGEN is taken apart: its UNet, which reads boxes as well (``gligen.py``), draws with the calls of Stable
    Diffusion.

    Args:
        pipeline: As of ``Backbone``.
        name: As there.
        sampling: As there.
        safety_checker: As there.
        parts: As there.

    Raises:
        ValueError: As there, or if the UNet reads pictures of objects.
    """

    pipelines = (StableDiffusionPipeline, StableDiffusionXLPipeline)
    taken_apart = (GLIGEN,)

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        name: str,
        sampling: Mapping[str, Any] | None = None,
        safety_checker: bool = False,
        parts: Mapping[str, str] | None = None,
    ) -> None:
        if type(pipeline).__name__ == GLIGEN:
            place = pipeline.name_or_path
            pipeline = StableDiffusionPipeline(
                **pipeline.components, requires_safety_checker=pipeline.config.requires_safety_checker
            )
            pipeline.register_to_config(_name_or_path=place)
        if getattr(getattr(pipeline, "unet", None), "config", {}).get("attention_type") == "gated-text-image":
            raise ValueError(
                f"{name} is a GLIGEN that also reads pictures of objects; give one of texts and boxes alone"
            )
        super().__init__(pipeline, name, sampling, safety_checker, parts)

    @property
    def unet(self) -> Any:
        """The UNet."""
        return self.pipeline.unet

    @property
    def denoiser(self) -> Any:
        """The UNet."""
        return self.pipeline.unet

    @property
    def is_sdxl(self) -> bool:
        """Whether the UNet also takes pooled text and time ids."""
        return isinstance(self.pipeline, StableDiffusionXLPipeline)

    def encoders(self) -> list[tuple[Any, nn.Module]]:
        """Return CLIP's tokenizer and text encoder; for SDXL both pairs."""
        pairs = [(self.pipeline.tokenizer, self.pipeline.text_encoder)]
        return [*pairs, (self.pipeline.tokenizer_2, self.pipeline.text_encoder_2)] if self.is_sdxl else pairs

    def encode_ids(self, ids: Sequence[Tensor]) -> Text:
        """Encode token ids ``(B, L)``, one tensor per text encoder, as the stock pipelines do.

        Stable Diffusion takes the last hidden state after the final norm. SDXL takes the states before the last layer
        of both encoders side by side, and the second encoder's projected pooled state.
        """
        outputs = [
            encoder(tokens.to(encoder.device), output_hidden_states=self.is_sdxl)
            for encoder, tokens in zip(self.text_encoders, ids, strict=True)
        ]
        if not self.is_sdxl:
            return Text(outputs[0].last_hidden_state)
        hidden = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        return Text(hidden, outputs[1].text_embeds)

    def negatives(self, prompts: Sequence[str]) -> dict[str, Any]:
        """Return the arguments of a stock call that leads away from texts, one for each image; an empty one is none.

        Many an SDXL (``force_zeros_for_empty_prompt``) takes zeros for no text, and not the states of an empty one.
        """
        if all(prompts) or not (self.is_sdxl and self.pipeline.config.force_zeros_for_empty_prompt):
            return super().negatives(prompts)
        if not any(prompts):
            return {}
        text, empty = self.encode_text(prompts), [at for at, prompt in enumerate(prompts) if not prompt]
        named = {"prompt_embeds": text.prompt_embeds, "pooled_prompt_embeds": text.pooled_prompt_embeds}
        for embeds in filter(torch.is_tensor, named.values()):
            embeds[empty] = 0
        return {f"negative_{name}": embeds for name, embeds in named.items()}

    def denoise(self, noised: Noised, text: Text, size_ids: Tensor | None = None) -> Tensor:
        """Predict noise or velocity, ``(B, C, h, w)``; a UNet that takes a guidance scale gets that of ``sampling``."""
        added = self.added_conditions(text, noised.noisy_latents.shape[-2:], size_ids)
        return self.unet(
            noised.noisy_latents.to(self.dtype),
            noised.timesteps,
            text.prompt_embeds,
            timestep_cond=guidance_condition(self.pipeline, len(noised.timesteps), self.sampling["guidance_scale"]),
            added_cond_kwargs=added,
        ).sample

    def added_conditions(
        self, text: Text, grid: Sequence[int], size_ids: Tensor | None = None
    ) -> dict[str, Tensor] | None:
        """Return SDXL's ``added_cond_kwargs``, pooled text and time ids ``(B, 6)``; None for other models."""
        pooled = text.pooled_prompt_embeds
        if not self.is_sdxl or pooled is None:
            return None
        if size_ids is None:
            height, width = (side * self.pipeline.vae_scale_factor for side in grid)
            size_ids = torch.tensor([[height, width, 0, 0, height, width]]).expand(len(pooled), -1)
        return {"text_embeds": pooled, "time_ids": size_ids.to(pooled)}


def guidance_condition(pipeline: Any, number: int, guidance_scale: float | None = None) -> Tensor | None:
    """Embed a guidance scale for a UNet that takes it, as LCM does; None for other UNets.

    Args:
        pipeline: Stock pipeline with the UNet.
        number: Number of rows.
        guidance_scale: The scale; None for that of the pipeline's present call.

    Returns:
        The embedding, ``(number, width)``, as the stock pipeline makes it.
    """
    width = pipeline.unet.config.time_cond_proj_dim
    if width is None:
        return None
    scale = pipeline.guidance_scale if guidance_scale is None else guidance_scale
    embedded = pipeline.get_guidance_scale_embedding(torch.full((number,), scale - 1.0), embedding_dim=width)
    return embedded.to(pipeline.unet.device, pipeline.unet.dtype)
