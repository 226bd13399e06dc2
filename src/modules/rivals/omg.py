"""OMG (Kong et al., ECCV 2024, arXiv 2403.10983): draw a layout with plain nouns, then blend the noises of concepts.

Ours: the masks of the first stage come from its cross-attention to the nouns, where the paper segments its picture with
further models; and the second stage keeps the layout by the same noise alone.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from src.data.banks import ConceptFile
from src.data.ranges import BatchSize, Sampling, Share1
from src.modules.backbones.base import Backbone, Text
from src.modules.latexblend.attention import attention_grid, recorded_attention
from src.modules.rivals.concept import RivalConcept, changed_weights, weighted
from src.modules.rivals.generator import Mentioned, RivalGenerator


def masks_of(attention: Tensor, threshold: float) -> Tensor:
    """Give each concept its cells: those where its noun gets the most attention, and enough of it.

    Args:
        attention: Attention of each cell to each of N nouns, ``(B, N, h, w)``.
        threshold: Share of a noun's own range of attention that a cell must reach.

    Returns:
        Masks that do not overlap, of zeros and ones, ``(B, N, h, w)``.
    """
    low, high = attention.amin((2, 3), keepdim=True), attention.amax((2, 3), keepdim=True)
    ranged = (attention - low) / (high - low).clamp(min=torch.finfo(attention.dtype).tiny)
    first = torch.zeros_like(ranged).scatter_(1, ranged.argmax(1, keepdim=True), 1.0)
    return first * (ranged >= threshold)


class OMGGenerator(RivalGenerator):
    """Draws prompts of several concepts, each of which has a DreamBooth-LoRA of its own.

    Args:
        backbone: The stock model, a UNet.
        banks: Name of a concept to its DreamBooth-LoRA, or to its file.
        sampling: As of ``RivalGenerator``.
        threshold: See ``masks_of``.
        batch_size: As of ``RivalGenerator``.
        device: As there.

    Raises:
        ValueError: As there, or if the backbone has no cross-attention, or its calls take no callback at the end of a
            step.
    """

    method = "dreambooth_lora"

    def __init__(
        self,
        backbone: Backbone,
        banks: Mapping[str, RivalConcept | ConceptFile] | None = None,
        sampling: Sampling | None = None,
        threshold: Share1 = 0.4,
        batch_size: BatchSize = 8,
        device: str | None = None,
    ) -> None:
        if backbone.joint or not hasattr(backbone.pipeline, "_callback_tensor_inputs"):
            raise ValueError(
                f"OMG reads the attention of every step, which a {type(backbone.pipeline).__name__} does not show; "
                "take a Stable Diffusion or SDXL backbone"
            )
        self.threshold = threshold
        super().__init__(backbone, banks, sampling, batch_size, device)

    def options(self) -> dict[str, Any]:
        """Return the threshold."""
        return {"threshold": float(self.threshold)}

    def draw(self, batch: Sequence[Mentioned]) -> list[Image.Image]:
        """Draw the layout, then the concepts in it; a single concept is drawn as by DreamBooth-LoRA."""
        if len(set(batch[0].names)) < 2:
            return super().draw(batch)
        masks = self.layout(batch)
        names = batch[0].names
        texts = [self.read(batch, (name,)) for name in names]
        weights = [changed_weights(self.backbone, self.changes((name,))) for name in names]
        prompts, seeds = [one.plain for one in batch], [one.seed for one in batch]
        with self.blended(list(zip(masks.unbind(1), texts, weights, strict=True))):
            return self.backbone.draw(prompts, seeds, self.sampling)

    def layout(self, batch: Sequence[Mentioned]) -> Tensor:
        """Draw the plain prompts, and find a mask of each concept in each picture, ``(B, N, h, w)``."""
        found: list[Tensor] = []

        def after_step(pipeline: Any, index: int, timestep: Tensor, state: dict[str, Tensor]) -> dict[str, Tensor]:
            size = state["latents"].shape[-2:]
            for attention in maps.values():
                # The conditional rows of a guided batch are its last ones.
                rows = zip(attention[-len(batch) :], batch, strict=True)
                nouns = torch.stack([cells[:, [at[-1] for at in one.positions]].T for cells, one in rows])
                grid = nouns.unflatten(2, attention_grid(attention.shape[1], size)).float()  # (B, N, rows, columns)
                found.append(F.interpolate(grid, size, mode="bilinear", antialias=True))
            return {}

        with recorded_attention(self.backbone.denoiser) as maps:
            self.backbone.draw(
                [one.plain for one in batch],
                [one.seed for one in batch],
                self.sampling,
                callback_on_step_end=after_step,
            )
        return masks_of(torch.stack(found).mean(0), self.threshold)

    @contextlib.contextmanager
    def blended(self, concepts: Sequence[tuple[Tensor, Text, Mapping[str, Tensor]]]) -> Iterator[None]:
        """While active, the denoiser's output inside a concept's mask is that of the concept's own weights and text.

        Args:
            concepts: Mask ``(B, h, w)``, encoded prompts and weights of each.
        """
        denoiser = self.backbone.denoiser
        stock = denoiser.forward

        def forward(sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, **others: Any) -> Any:
            whole = stock(sample, timestep, encoder_hidden_states, **{**others, "return_dict": False})[0]
            for mask, text, weights in concepts:
                number = len(mask)
                hidden, further = encoder_hidden_states.clone(), dict(others)
                hidden[-number:] = text.prompt_embeds.to(hidden)
                if text.pooled_prompt_embeds is not None:
                    added = dict(further["added_cond_kwargs"])
                    pooled = added["text_embeds"].clone()
                    pooled[-number:] = text.pooled_prompt_embeds.to(pooled)
                    further["added_cond_kwargs"] = {**added, "text_embeds": pooled}
                with weighted(self.backbone, weights):
                    own = stock(sample, timestep, hidden, **{**further, "return_dict": False})[0]
                inside = mask[:, None].to(whole).repeat(len(whole) // number, 1, 1, 1)
                whole = whole * (1 - inside) + own * inside
            return (whole,)

        denoiser.forward = forward
        try:
            yield
        finally:
            del denoiser.forward
