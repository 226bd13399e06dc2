"""PixArt (Alpha and Sigma, arXiv 2403.04692): a transformer whose cross-attention reads the states of a T5 encoder."""

from collections.abc import Sequence
from typing import Any

from diffusers import PixArtAlphaPipeline, PixArtSigmaPipeline
from torch import Tensor, nn

from src.modules.backbones.base import Backbone, Noised, Text

MAX_TOKENS = {PixArtAlphaPipeline: 120, PixArtSigmaPipeline: 300}
"""Number of text tokens that each stock pipeline takes."""


class PixArtBackbone(Backbone):
    """A PixArt pipeline of any size.

    A small network (``caption_projection``) stands between T5 and the keys and values of cross-attention, which a
    concept's rows are taken from. T5 and the transformer both mask padding.
    """

    pipelines = (PixArtAlphaPipeline, PixArtSigmaPipeline)
    option = "pixart_sigma"

    @property
    def denoiser(self) -> Any:
        """The transformer."""
        return self.pipeline.transformer

    def encoders(self) -> list[tuple[Any, nn.Module]]:
        """T5's tokenizer and encoder."""
        self.pipeline.tokenizer.model_max_length = MAX_TOKENS[type(self.pipeline)]
        return [(self.pipeline.tokenizer, self.pipeline.text_encoder)]

    @property
    def call(self) -> dict[str, Any]:
        """Arguments that keep the pipeline from rewriting prompts, which would move their tokens, and from resizing."""
        return {"clean_caption": False, "use_resolution_binning": False}

    def as_read(self, prompt: str) -> str:
        """Lower the prompt's case, as PixArt does."""
        return prompt.lower()

    def encode_ids(self, ids: Sequence[Tensor]) -> Text:
        """Encode token ids ``(B, L)`` to T5's last hidden state, and mark which tokens are not padding."""
        tokens = ids[0].to(self.text_encoders[0].device)
        mask = (tokens != self.tokenizers[0].pad_token_id).long()
        return Text(self.text_encoders[0](tokens, attention_mask=mask).last_hidden_state, mask=mask)

    def read_text(self, prompt_embeds: Tensor) -> Tensor:
        """Project T5 states ``(..., D)`` with the caption projection, ``(..., width of the transformer)``."""
        projection = self.denoiser.caption_projection
        return prompt_embeds if projection is None else projection(prompt_embeds)

    def encoded(self, text: Text) -> dict[str, Any]:
        """Return the arguments of a stock call that reads text states, and which of them are padding."""
        return {"prompt_embeds": text.prompt_embeds, "prompt_attention_mask": text.mask}

    def denoise(self, noised: Noised, text: Text, size_ids: Tensor | None = None) -> Tensor:
        """Predict noise, ``(B, C, h, w)``; the learnt variance in the second half of the channels is dropped."""
        predicted = self.denoiser(
            noised.noisy_latents.to(self.dtype),
            encoder_hidden_states=text.prompt_embeds.to(self.dtype),
            encoder_attention_mask=text.mask,
            timestep=noised.timesteps,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        ).sample
        return predicted[:, : noised.noisy_latents.shape[1]]
