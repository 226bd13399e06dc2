"""Qwen-Image (arXiv 2508.02324): joint attention in double blocks, with the states of a language model for text.

Shapes: B prompts or images, L tokens, D text width, C latent channels, N patches of 2 x 2 latents.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import QwenImagePipeline
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from src.data.finite import check_finite
from src.data.prompts import tokenize
from src.modules.backbones.autoencoder import scaled
from src.modules.backbones.base import Backbone, Text
from src.modules.backbones.latents import Packed
from src.modules.backbones.noising import FlowMatching
from src.modules.backbones.tensors import Noised


class QwenImageBackbone(FlowMatching, Packed, Backbone):
    """A Qwen-Image pipeline of any size.

    The prompt stands in a chat template, whose first rows the pipeline drops: the first row is that of the prompt's
    first token. Guidance is real: the transformer is called once with the prompt and once without, and an empty
    negative prompt is a space, as its authors have it.
    """

    pipelines = (QwenImagePipeline,)
    option = "qwen_image"
    joint = "text first"
    switched = True

    @property
    def denoiser(self) -> Any:
        """The transformer."""
        return self.pipeline.transformer

    def encoders(self) -> list[tuple[Any, nn.Module]]:
        """The language model, whose tokenizer has room for what the template leaves."""
        of = self.pipeline
        around = len(of.tokenizer(of.prompt_template_encode.format("")).input_ids)
        of.tokenizer.model_max_length = of.tokenizer_max_length + of.prompt_template_encode_start_idx - around
        return [(of.tokenizer, of.text_encoder)]

    @property
    def last_timestep(self) -> float:
        """The timestep of pure noise, as the transformer is told it."""
        return 1.0

    @property
    def resolution(self) -> int:
        """Native side of an image in pixels."""
        return int(self.pipeline.default_sample_size * self.pipeline.vae_scale_factor)

    def guidance(self, scale: float) -> dict[str, Any]:
        """Return the argument of a stock call that sets how strongly the prompt guides."""
        return {"true_cfg_scale": scale}

    def negatives(self, prompts: Sequence[str]) -> dict[str, Any]:
        """Return the arguments of a stock call that leads away from texts; an empty one is a space."""
        return {"negative_prompt": [prompt or " " for prompt in prompts]}

    def encoded(self, text: Text) -> dict[str, Any]:
        """Return the arguments of a stock call that reads text states, and which of them are padding."""
        return {"prompt_embeds": text.prompt_embeds, "prompt_embeds_mask": text.mask}

    def token_ids(self, prompts: Sequence[str]) -> list[Tensor]:
        """Tokenize prompts in the chat template, ``(B, template and L)``, padded to the longest."""
        tokenize(self.tokenizers[0], prompts)  # Refuses what is too long.
        told = [self.pipeline.prompt_template_encode.format(prompt) for prompt in prompts]
        return [self.tokenizers[0](told, padding=True, return_tensors="pt").input_ids]

    def encode_ids(self, ids: Sequence[Tensor]) -> Text:
        """Encode token ids to the language model's last states behind the template's start, and mark padding."""
        tokens = ids[0].to(self.text_encoders[0].device)
        real = tokens != self.tokenizers[0].pad_token_id
        found = self.text_encoders[0](input_ids=tokens, attention_mask=real.long(), output_hidden_states=True)
        start = self.pipeline.prompt_template_encode_start_idx
        rows = [states[own][start:] for states, own in zip(found.hidden_states[-1], real, strict=True)]
        mask = pad_sequence([torch.ones(len(each), dtype=torch.long, device=each.device) for each in rows], True)
        return Text(pad_sequence(rows, True), mask=mask)

    @torch.no_grad()
    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """Encode images ``(B, 3, H, W)`` as videos of one frame to normalised latents ``(B, C, H/8, W/8)``."""
        frames = pixel_values.to(self.vae.device, self.vae.dtype)[:, :, None]
        latents = self.vae.encode(frames).latent_dist.mode()[:, :, 0].float()
        check_finite(latents, "the latents of these images")
        return scaled(self.vae.config, latents).contiguous()

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Decode normalised latents ``(B, C, h, w)`` to images ``(B, 3, H, W)``: the one frame of a video."""
        frames = scaled(self.vae.config, latents.float(), inverse=True)[:, :, None]
        return self.vae.decode(frames.to(self.vae.device, self.vae.dtype), return_dict=False)[0][:, :, 0].float()

    def grid(self, told: Mapping[str, Any]) -> tuple[int, int]:
        """Return the rows and columns of patches."""
        [(_, rows, columns), *_] = told["img_shapes"][0]
        return rows, columns

    def denoise(self, noised: Noised, text: Text, size_ids: Tensor | None = None) -> Tensor:
        """Predict the velocity, ``(B, C, h, w)``."""
        number, _, height, width = noised.noisy_latents.shape
        grid = (height // 2, width // 2)
        mask = text.mask if text.mask is not None and not text.mask.all() else None  # None as in the stock pipeline.
        patches = self.denoiser(
            hidden_states=self.packed(noised.noisy_latents.to(self.dtype)),  # (B, N, 4 C)
            timestep=noised.timesteps.to(self.dtype) / self.noise_scheduler.config.num_train_timesteps,
            encoder_hidden_states=text.prompt_embeds.to(self.dtype),
            encoder_hidden_states_mask=mask,
            img_shapes=[[(1, *grid)]] * number,
        ).sample
        return self.unpacked(patches, grid)
