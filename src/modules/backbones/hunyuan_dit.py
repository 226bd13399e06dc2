"""Hunyuan-DiT (arXiv 2405.08748): a transformer whose cross-attention reads a bilingual CLIP and, behind it, T5.

Shapes: B prompts, L tokens of both text encoders, D text width, C latent channels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import HunyuanDiTPipeline
from diffusers.models.embeddings import get_2d_rotary_pos_embed
from diffusers.pipelines.hunyuandit.pipeline_hunyuandit import get_resize_crop_region_for_grid
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from src.data.mentions import MarkedPrompt
from src.data.prompts import concept_positions
from src.modules.backbones.base import Backbone, Noised, Text

MAX_TOKENS = (77, 256)
"""Number of tokens that the stock pipeline gives to the bilingual CLIP and to T5."""
CELL, BASE = 8, 512
"""Side of a latent cell in pixels, and of the image whose positions the rotary embedding counts."""


class HunyuanDiTBackbone(Backbone):
    """A Hunyuan-DiT pipeline of any size.

    Cross-attention reads the rows of CLIP and behind them those of T5, which a small network (``text_embedder``)
    projects; in the place of padding it reads rows of its own. So a concept stands twice in a prompt, and a bank has
    the rows of both places: were it put into one of them, the other would go on saying the plain noun. V* is learnt in
    both text encoders, and each has its own positions, for the two cut words in different ways. A vector that T5 is
    pooled to joins the timestep; it stays that of the plain prompt, as SDXL's does.
    """

    pipelines = (HunyuanDiTPipeline,)
    option = "hunyuan_dit"

    @property
    def denoiser(self) -> Any:
        """The transformer."""
        return self.pipeline.transformer

    def encoders(self) -> list[tuple[Any, nn.Module]]:
        """Return the bilingual CLIP and T5 with their tokenizers."""
        of = self.pipeline
        of.tokenizer.model_max_length, of.tokenizer_2.model_max_length = MAX_TOKENS
        return [(of.tokenizer, of.text_encoder), (of.tokenizer_2, of.text_encoder_2)]

    @property
    def call(self) -> dict[str, Any]:
        """Argument that keeps the pipeline from resizing."""
        return {"use_resolution_binning": False}

    def place(self, prompt: str, class_nouns: Mapping[str, str]) -> tuple[MarkedPrompt, list[tuple[str, list[int]]]]:
        """Find each mention among the rows of CLIP, and behind them among those of T5."""
        marked, places = super().place(prompt, class_nouns)
        again = concept_positions(self.tokenizers[1], prompt, class_nouns, self.as_read)[1]
        both = zip(places, again, strict=True)
        return marked, [(name, [*clip, *(MAX_TOKENS[0] + at for at in t5)]) for (name, clip), (_, t5) in both]

    def encode_ids(self, ids: Sequence[Tensor]) -> Text:
        """Encode token ids ``(B, 77)`` and ``(B, 256)``, and mark which are not padding.

        The narrower states are padded with zeros to the width of the others.
        """
        states, masks = [], []
        for tokens, tokenizer, encoder in zip(ids, self.tokenizers, self.text_encoders, strict=True):
            here = tokens.to(encoder.device)
            masks.append((here != tokenizer.pad_token_id).long())
            states.append(encoder(here, attention_mask=masks[-1])[0].to(self.dtype))
        width = max(each.shape[-1] for each in states)
        wide = [F.pad(each, (0, width - each.shape[-1])) for each in states]
        return Text(torch.cat(wide, dim=1), mask=torch.cat(masks, dim=1))

    def read_text(self, prompt_embeds: Tensor) -> Tensor:
        """Project the rows of T5 in whole prompts ``(B, L, D)``, and leave those of CLIP, ``(B, L, width of CLIP)``."""
        clip, t5 = self._parts(prompt_embeds)
        return torch.cat([clip, self.denoiser.text_embedder(t5)], dim=1)

    def encoded(self, text: Text) -> dict[str, Any]:
        """Return the arguments of a stock call that reads the states of both encoders, and which are padding."""
        (clip, t5), (mask, mask_2) = self._parts(text.prompt_embeds), self._masks(text)
        return {
            "prompt_embeds": clip,
            "prompt_embeds_2": t5,
            "prompt_attention_mask": mask,
            "prompt_attention_mask_2": mask_2,
        }

    def denoise(self, noised: Noised, text: Text, size_ids: Tensor | None = None) -> Tensor:
        """Predict noise or velocity, ``(B, C, h, w)``; the learnt variance in the second half is dropped."""
        latents = noised.noisy_latents.to(self.dtype)
        number, channels, height, width = latents.shape
        (clip, t5), (mask, mask_2) = self._parts(text.prompt_embeds.to(self.dtype)), self._masks(text)
        # As the stock pipeline says it of every image: 1024 pixels before, this size now, and nothing cut off.
        sizes = torch.tensor([1024, 1024, CELL * height, CELL * width, 0, 0]).expand(number, -1)
        predicted = self.denoiser(
            latents,
            noised.timesteps.to(self.dtype),
            encoder_hidden_states=clip,
            text_embedding_mask=mask,
            encoder_hidden_states_t5=t5,
            text_embedding_mask_t5=mask_2,
            image_meta_size=sizes.to(latents),
            style=torch.zeros(number, dtype=torch.long, device=latents.device),
            image_rotary_emb=self._places(height, width, latents.device),
        ).sample
        return predicted[:, :channels]

    def _parts(self, embeds: Tensor) -> tuple[Tensor, Tensor]:
        """States of CLIP ``(B, 77, D')`` and of T5 ``(B, 256, D'')``."""
        width, width_t5 = (self.denoiser.config[f"cross_attention_dim{name}"] for name in ("", "_t5"))
        rows = MAX_TOKENS[0]
        # The transformer takes no strided view of T5's.
        return embeds[:, :rows, :width].contiguous(), embeds[:, rows:, :width_t5].contiguous()

    def _masks(self, text: Text) -> tuple[Tensor, Tensor]:
        assert text.mask is not None
        return text.mask[:, : MAX_TOKENS[0]], text.mask[:, MAX_TOKENS[0] :]

    def _places(self, height: int, width: int, device: torch.device) -> Any:
        """Rotary embedding of the patches of latents, as the stock pipeline makes it."""
        patch = self.denoiser.config.patch_size
        grid = (height // patch, width // patch)
        region = get_resize_crop_region_for_grid(grid, BASE // CELL // patch)
        size = self.denoiser.inner_dim // self.denoiser.num_heads
        return get_2d_rotary_pos_embed(size, region, grid, device=device, output_type="pt")
