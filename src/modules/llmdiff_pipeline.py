"""Any stock diffusers pipeline, driven by a language model through an LLMDiff adapter."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from src.modules.llm.aggregation import Generators
from src.modules.llm_encoder import LLMEncoder
from src.modules.llmdiff_adapter import LLMDiffAdapter


class LLMDiffPipeline:
    """Called like the pipeline that it wraps: text-to-image, img2img, inpainting or ControlNet, SD or SDXL.

    Prompts may be of any length up to the language model's context, and of unequal length in one batch.

    Args:
        pipeline: Stock; its text encoders are not used and may be absent.
        adapter: For the pipeline's UNet.
        encoder: That the adapter was trained with.
        strength: See ``LLMDiffAdapter.installed``.

    Raises:
        ValueError: If the adapter does not fit the encoder.
    """

    def __init__(
        self, pipeline: DiffusionPipeline, adapter: LLMDiffAdapter, encoder: LLMEncoder, strength: float = 1.0
    ) -> None:
        adapter.check_encoder(encoder)
        self.pipeline, self.adapter, self.encoder, self.strength = pipeline, adapter, encoder, strength

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] | None = None,
        generator: Generators = None,
        **arguments: Any,
    ) -> Any:
        """Draw.

        Args:
            prompt: One, or several.
            negative_prompt: One for all, one for each, or None for the empty one.
            generator: One for each image, or one for all. A text with noise (``noise=always``) draws from it too.
            arguments: Of the stock pipeline: ``num_inference_steps``, ``guidance_scale``, ``num_images_per_prompt``,
                ``latents``, ``image`` ...

        Returns:
            What the stock pipeline returns.

        Raises:
            ValueError: If a prompt is too long, or there are neither one nor as many negative prompts as prompts.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        negatives = _one_each(negative_prompt, len(prompts))
        # A single generator goes on from one prompt to the next; a list has one for each image.
        per_prompt = arguments.get("num_images_per_prompt") or 1
        seeded = generator if isinstance(generator, torch.Generator | None) else list(generator)[::per_prompt]
        with self.adapter.installed(self.pipeline.unet, getattr(self.pipeline, "controlnet", None), self.strength):
            texts = self.embeds(prompts, negatives, seeded)
            return self.pipeline(**texts, generator=generator, **arguments)

    def embeds(
        self, prompts: Sequence[str], negatives: Sequence[str], generators: Generators = None
    ) -> dict[str, Tensor]:
        """The pipeline's text arguments: ``prompt_embeds``, ``negative_prompt_embeds``, for SDXL also pooled ones."""
        number = len(prompts)
        both = list(generators) * 2 if isinstance(generators, Sequence) else generators
        encoded = self.adapter(self.encoder.encode([*prompts, *negatives]), both)
        unet = self.pipeline.unet
        named = {"prompt_embeds": encoded.prompt_embeds, "pooled_prompt_embeds": encoded.pooled_prompt_embeds}
        found = {}
        for name, tensor in named.items():
            if tensor is not None:
                found[name], found[f"negative_{name}"] = tensor.to(unet.device, unet.dtype).split(number)
        return found


def _one_each(negative: str | Sequence[str] | None, number: int) -> list[str]:
    if negative is None or isinstance(negative, str):
        return [negative or ""] * number
    if len(negative) != number:
        raise ValueError(f"{len(negative)} negative prompts for {number} prompts; give one, or one for each")
    return list(negative)
