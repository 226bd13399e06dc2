"""Stable Diffusion 3 and 3.5 (arXiv 2403.03206): joint attention of image and text, from two CLIPs and T5.

Shapes: B prompts or images, L tokens, D text width, C latent channels.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline, StableDiffusion3Pipeline
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from src.data.mentions import MarkedPrompt
from src.data.prompts import concept_positions
from src.modules.backbones.base import SAMPLING, Backbone, Text
from src.modules.backbones.noising import FlowMatching
from src.modules.backbones.tensors import Noised

ROWS_OF_T5 = 256
"""The stock pipeline's, also where there is no T5, whose rows are zeros then."""


class SD3Backbone(FlowMatching, Backbone):
    """A Stable Diffusion 3 or 3.5 pipeline of any size, with T5 or without.

    A prompt is rows of CLIP, both encoders side by side and padded to T5's width, and behind them rows of T5: a concept
    stands twice in it.

    Args:
        pipeline: As of ``Backbone``.
        name: As there.
        sampling: As there, and ``max_sequence_length``, the rows of T5.
        safety_checker: As there.
        parts: As there.

    Raises:
        ValueError: As there.
    """

    pipelines = (StableDiffusion3Pipeline,)
    option = "sd35_medium"
    joint = "image first"
    usual_sampling: ClassVar[Mapping[str, Any]] = {**SAMPLING, "max_sequence_length": ROWS_OF_T5}

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        name: str,
        sampling: Mapping[str, Any] | None = None,
        safety_checker: bool = False,
        parts: Mapping[str, str] | None = None,
    ) -> None:
        self.rows_of_t5 = int({**self.usual_sampling, **(sampling or {})}["max_sequence_length"])
        super().__init__(pipeline, name, sampling, safety_checker, parts)
        del self.sampling["max_sequence_length"]  # Of the model, not of a call.

    @property
    def denoiser(self) -> Any:
        """The transformer."""
        return self.pipeline.transformer

    def encoders(self) -> list[tuple[Any, nn.Module]]:
        """Return both CLIPs with their tokenizers, and T5 where the pipeline has it."""
        of = self.pipeline
        pairs = [(of.tokenizer, of.text_encoder), (of.tokenizer_2, of.text_encoder_2)]
        if of.text_encoder_3 is None:
            return pairs
        of.tokenizer_3.model_max_length = self.rows_of_t5
        return [*pairs, (of.tokenizer_3, of.text_encoder_3)]

    @property
    def call(self) -> dict[str, Any]:
        """Arguments of every call: the rows of T5."""
        return {"max_sequence_length": self.rows_of_t5}

    @property
    def identity(self) -> str:
        """As of ``Backbone``, with the rows of T5 where they are not the stock pipeline's."""
        rows = "" if self.rows_of_t5 == ROWS_OF_T5 else f" rows_of_t5={self.rows_of_t5}"
        return super().identity + rows

    @property
    def overrides(self) -> dict[str, Any]:
        """As of ``Backbone``, with the rows of T5 where they are not the stock pipeline's."""
        rows = {"backbone.sampling.max_sequence_length": self.rows_of_t5}
        return super().overrides | (rows if self.rows_of_t5 != ROWS_OF_T5 else {})

    def place(self, prompt: str, class_nouns: Mapping[str, str]) -> tuple[MarkedPrompt, list[tuple[str, list[int]]]]:
        """Find each mention among the rows of CLIP, and behind them among those of T5."""
        marked, places = super().place(prompt, class_nouns)
        if len(self.tokenizers) < 3:
            return marked, places
        behind = self.tokenizers[0].model_max_length
        again = concept_positions(self.tokenizers[2], prompt, class_nouns, self.as_read)[1]
        both = zip(places, again, strict=True)
        return marked, [(name, [*clip, *(behind + at for at in t5)]) for (name, clip), (_, t5) in both]

    def encode_ids(self, ids: Sequence[Tensor]) -> Text:
        """Encode token ids ``(B, L)``: CLIP's states before the last layer, T5's last, and CLIP's pooled text."""
        found = [
            encoder(tokens.to(encoder.device), output_hidden_states=True)
            for encoder, tokens in zip(self.text_encoders[:2], ids, strict=False)
        ]
        width = self.denoiser.config.joint_attention_dim
        clip = torch.cat([each.hidden_states[-2] for each in found], dim=-1)  # (B, 77, 768 + 1280)
        clip = F.pad(clip, (0, width - clip.shape[-1]))
        if len(ids) > 2:
            t5 = self.text_encoders[2](ids[2].to(self.text_encoders[2].device))[0].to(clip)
        else:
            t5 = clip.new_zeros(len(clip), self.rows_of_t5, width)
        return Text(torch.cat([clip, t5], dim=1), torch.cat([each.text_embeds for each in found], dim=-1))

    def denoise(self, noised: Noised, text: Text, size_ids: Tensor | None = None) -> Tensor:
        """Predict the velocity, ``(B, C, h, w)``."""
        return self.denoiser(
            noised.noisy_latents.to(self.dtype),
            encoder_hidden_states=text.prompt_embeds.to(self.dtype),
            pooled_projections=text.pooled_prompt_embeds.to(self.dtype),  # type: ignore[union-attr]
            timestep=noised.timesteps,
        ).sample
