"""Switti as a diffusers pipeline: prompts to images."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from diffusers import ImagePipelineOutput
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor
from transformers import BatchEncoding, CLIPTextModel, CLIPTokenizer

from src.data.images import fitted
from src.modules.generator import model_sampling, settled
from src.modules.next_scale.loop import Condition, Generation, OnScale
from src.modules.next_scale.memory import BlockBytes, PeakMemory
from src.modules.next_scale.pipeline import NextScalePipeline, check_call, check_lengths, check_room, drawn
from src.modules.next_scale.sampling import Generators
from src.modules.next_scale.switti.autoencoder import VQVAE
from src.modules.next_scale.switti.sampling import SwittiDraw, SwittiSampling
from src.modules.next_scale.switti.transformer import SwittiTransformer


class SwittiPipeline(NextScalePipeline):
    """Draws square images of the transformer's size from text.

    Args:
        transformer: Predicts the next scale's indices.
        vae: Turns indices into images.
        text_encoder: The first text encoder, CLIP ViT-L/14.
        text_encoder_2: The second text encoder, OpenCLIP ViT-bigG/14.
        tokenizer: Tokenizer of the first text encoder.
        tokenizer_2: Tokenizer of the second text encoder.
        sampling: The model's own values of arguments that a call leaves out, where they are not ``SwittiSampling``'s.

    Raises:
            ValueError: If the parts do not belong to one model, or ``sampling`` names an unknown argument.
    """

    model_cpu_offload_seq = "text_encoder->text_encoder_2->transformer->vae"

    def __init__(
        self,
        transformer: SwittiTransformer,
        vae: VQVAE,
        text_encoder: CLIPTextModel,
        text_encoder_2: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        tokenizer_2: CLIPTokenizer,
        sampling: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            transformer=transformer,
            vae=vae,
            text_encoder=text_encoder,
            text_encoder_2=text_encoder_2,
            tokenizer=tokenizer,
            tokenizer_2=tokenizer_2,
        )
        self.register_to_config(sampling=sampling)
        self.sampling = model_sampling(asdict(SwittiSampling()), sampling)
        self._check_parts()
        self.image_processor = VaeImageProcessor(vae_scale_factor=vae.patch_size)

    def _check_parts(self) -> None:
        transformer, tokenizer = self.transformer.config, self.vae.config
        first, second = self.text_encoder.config.hidden_size, self.text_encoder_2.config.hidden_size
        pairs = {
            "channels of a code, by the VQ-VAE": (transformer.latent_channels, tokenizer.latent_channels),
            "codes, by the VQ-VAE": (transformer.num_codes, tokenizer.num_codes),
            "text channels, by both text encoders": (transformer.text_dim, first + second),
            "pooled text channels, by the second text encoder": (transformer.pooled_dim, second),
        }
        for name, (expected, found) in pairs.items():
            if expected != found:
                raise ValueError(f"the parts do not match: the transformer expects {expected} {name} {found}")

    @property
    def resolution(self) -> int:
        """Side of an image in pixels."""
        return self.transformer.sides[-1] * self.vae.patch_size

    @property
    def num_scales(self) -> int:
        """Number of scales of an image."""
        return len(self.transformer.sides)

    @torch.no_grad()
    def encode_image(self, images: Sequence[Image.Image], num_scales: int) -> Tensor:
        """Encode images to the running sum of their codes after the first scales, ``F_s``: ``(B, d, N, N)``."""
        pixel_values = fitted(images, self.resolution, self.resolution).to(self.vae.device)
        return self.vae.encode_scales(pixel_values, self.transformer.sides, num_scales).features[-1]

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Refuse prompts that would have to be truncated.

        Raises:
            ValueError: If one is too long for a text encoder.
        """
        for tokenizer in (self.tokenizer, self.tokenizer_2):
            check_lengths(tokenizer, prompts, tokenizer.model_max_length)

    @torch.no_grad()
    def encode_prompt(self, prompts: Sequence[str], truncate: bool = False) -> Condition:
        """Encode prompts to what the transformer needs of them, one row for each prompt.

        Raises:
            ValueError: If a prompt is too long for the text encoders and is not to be truncated.
        """
        if not truncate:
            self.check_prompts(prompts)
        first, second = (_padded(words, prompts) for words in (self.tokenizer, self.tokenizer_2))
        encoders = ((self.text_encoder, first), (self.text_encoder_2, second))
        states = [encoder(tokens.input_ids.to(encoder.device)).last_hidden_state for encoder, tokens in encoders]
        mask = second.attention_mask.bool().to(states[1].device)
        pooled = states[1][torch.arange(len(mask)), mask.sum(-1) - 1]  # (B, pooled_dim), at the end token
        return self.transformer.condition(torch.cat(states, dim=-1), mask, pooled)

    @torch.no_grad()
    def decode(self, feature: Tensor) -> Tensor:
        """Decode running sums ``(B, d, N, N)`` one at a time, for memory, to images ``(B, 3, H, W)`` in [-1, 1]."""
        return torch.cat([self.vae.decode(each) for each in feature.split(1)])

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] | None = None,
        guidance_scale: float | Sequence[float] | None = None,
        turn_on: int | None = None,
        turn_off: int | None = None,
        last_scale_temp: float | None = None,
        more_smooth: bool | None = None,
        smooth_start: int | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        num_images_per_prompt: int = 1,
        generator: Generators = None,
        output_type: str = "pil",
        return_dict: bool = True,
        truncate: bool = False,
        callback_on_scale_end: Sequence[OnScale] = (),
    ) -> ImagePipelineOutput | tuple[list[Image.Image] | Tensor]:
        """Draw images. Arguments of sampling that are None take the model's own values, see ``sampling``.

        Args:
            prompt: One prompt, or several different ones.
            negative_prompt: What guidance leads away from: one for all prompts, or one for each; None is the empty one.
            guidance_scale: Guidance t of the last scale, with a linear ramp from 0 at the first; or that of each scale.
            turn_on: The first guided scale.
            turn_off: The first scale after ``turn_on`` that is not guided; the number of scales guides all.
            last_scale_temp: Temperature of the scales from ``turn_off`` on.
            more_smooth: Whether codes are mixed instead of chosen, at scales before ``turn_off``.
            smooth_start: The first scale at which codes are mixed.
            top_k: Number of likeliest codes to choose among; 0 for all.
            top_p: Probability of the likeliest codes to choose among; 0 for all.
            num_images_per_prompt: Number of images of each prompt; they are adjacent in the result.
            generator: One generator, or one for each image: then an image does not depend on the rest of the batch.
            output_type: ``pil``, ``np``, ``pt`` (both in [0, 1]), or ``latent`` for the last running sum.
            return_dict: Whether to wrap the images like other pipelines.
            truncate: Whether to cut prompts that are too long instead of refusing them.
            callback_on_scale_end: Hooks that get each scale's index and the ``Generation``, which they may change.

        Raises:
            ValueError: If an argument is impossible.
        """
        check_call(num_images_per_prompt, output_type)
        sampling = settled(
            self.sampling,
            {
                "guidance_scale": guidance_scale,
                "turn_on": turn_on,
                "turn_off": turn_off,
                "last_scale_temp": last_scale_temp,
                "more_smooth": more_smooth,
                "smooth_start": smooth_start,
                "top_k": top_k,
                "top_p": top_p,
            },
        )
        model = SwittiDraw(self.transformer, self.vae, SwittiSampling(**sampling))
        prompts, negatives = _texts(prompt, negative_prompt)
        images = len(prompts) * num_images_per_prompt
        check_room(self, self._peak(model), images, callback_on_scale_end, output_type)
        guided = any(scale != 1 for scale in model.guidance)
        texts = prompts + negatives if guided else prompts
        generation = Generation(
            model, self.encode_prompt(texts, truncate).repeated(num_images_per_prompt), images, generator
        )
        return drawn(self, generation, callback_on_scale_end, output_type, return_dict)

    def _peak(self, model: SwittiDraw) -> PeakMemory:
        transformer, side = self.transformer, self.transformer.sides[-1]
        return PeakMemory(
            model,
            lengths=[each**2 for each in transformer.sides],
            logits=transformer.config.num_codes,
            block=BlockBytes.of_switti(transformer, self.tokenizer.model_max_length),
            feature=(transformer.config.latent_channels, side, side),
            vae=self.vae,
            patch=self.vae.patch_size,
        )


def _padded(tokenizer: CLIPTokenizer, prompts: Sequence[str]) -> BatchEncoding:
    length = tokenizer.model_max_length
    return tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")


def _texts(prompt: str | Sequence[str], negative_prompt: str | Sequence[str] | None) -> tuple[list[str], list[str]]:
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    given = "" if negative_prompt is None else negative_prompt
    negatives = [given] * len(prompts) if isinstance(given, str) else list(given)
    if not prompts or len(negatives) != len(prompts):
        raise ValueError(
            f"{len(prompts)} prompts and {len(negatives)} negative prompts were given; give at least one prompt, and "
            "one negative prompt for all or one for each"
        )
    return prompts, negatives
