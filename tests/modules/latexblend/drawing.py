"""Drawing with concepts once more, in plain torch: one image, step by step, from the formulas of the paper.

Nothing of the method's own code is called here. Text encoders, scheduler and denoiser are stock, with attention that
is written out in ``formulas.py``.

Shapes: L tokens, S tokens of a concept, C width of text, D width of one projection, N cells of a feature map.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from tests.modules.latexblend.formulas import WrittenOut

Places = Sequence[tuple[Mapping[str, Tensor], Sequence[int]]]
"""Rows ``(S, D)`` of each concept, and the token positions of one mention: that of V*, then those of the noun."""


class Watched(WrittenOut):
    """Attention that also notes the map of its layer, the mean over heads: ``(1, N, L)``."""

    maps: list[Tensor]

    def __call__(self, attn, hidden_states: Tensor, encoder_hidden_states: Tensor, attention_mask=None, **_) -> Tensor:
        query, key = (
            part.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for part in (attn.to_q(hidden_states), self.keys(encoder_hidden_states))
        )
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        self.maps.append(scores.softmax(-1).mean(1))
        return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask)


def distance(one: Tensor, other: Tensor) -> Tensor:
    """Symmetric KL divergence of two distributions over cells."""
    return ((one * (one / other).log()).sum() + (other * (other / one).log()).sum()) / 2


def separation(attention: Tensor, phrases: Sequence[Sequence[int]]) -> Tensor:
    """Eq. 13 to 15 for one small map ``(N, L)``: each concept together, different ones apart."""
    share = {at: (100 * attention[:, at]).softmax(0) for phrase in phrases for at in phrase}
    loss = attention.new_zeros(())
    for first in phrases:
        loss = loss + max(distance(share[first[0]], share[at]) for at in first[1:])
        for second in phrases:
            if second != first:
                farthest = [max(distance(share[one], share[other]) for one in first) for other in second]
                loss = loss - sum(farthest) / len(second)
    return loss


@dataclass
class ByHand:
    """One image.

    Attributes:
        pipeline: Stable Diffusion or SDXL.
        steps: Number of denoising steps.
        scale: Factor g of ``e_u + g (e_c - e_u)``; 1 is no guidance.
        negative: What guidance leads away from; empty for nothing.
        start: Share of the schedule below which concepts act.
        bind: Whether V* gets the key of the noun's last token.
        context: Whether a concept adds what it changes of "photo of a noun", instead of replacing rows.
        guided: Number of steps of blending guidance.
        length: Length of such a step, as a share of that of the latents.
    """

    pipeline: DiffusionPipeline
    steps: int = 3
    scale: float = 5.0
    negative: str = ""
    start: float = 1.0
    bind: bool = False
    context: bool = False
    guided: int = 0
    length: float = 0.1

    def __post_init__(self) -> None:
        self.sdxl, self.unet = hasattr(self.pipeline, "text_encoder_2"), self.pipeline.unet
        self.layers = {name: layer for name, layer in self.unet.named_modules() if name.endswith("attn2")}

    def latents(self, plain: str, places: Places, seed: int, noun: str = "dog") -> Tensor:
        """Denoise one prompt, ``(1, 4, 8, 8)``, with concepts that are all called by one noun if ``context`` asks."""
        scheduler = type(self.pipeline.scheduler).from_config(self.pipeline.scheduler.config)
        scheduler.set_timesteps(self.steps)
        noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
        latents = noise * scheduler.init_noise_sigma
        text, nothing = self.encoded(plain), self.encoded(self.negative)
        if self.sdxl and not self.negative:
            nothing = tuple(torch.zeros_like(part) for part in nothing)
        offsets = self.projected_alone(f"photo of a {noun}", [3, 4]) if self.context else None
        for index, timestep in enumerate(scheduler.timesteps):
            given = scheduler.scale_model_input(latents, timestep)
            with torch.no_grad():
                conditional, _ = self.predicted(given, timestep, text, places, offsets)
                guided = conditional
                if self.scale > 1:
                    unconditional, _ = self.predicted(given, timestep, nothing, [], None)
                    guided = unconditional + self.scale * (conditional - unconditional)
                latents = scheduler.step(guided, timestep, latents).prev_sample
            if index < self.guided and index < self.steps - 1 and places:
                latents = latents.detach().requires_grad_()
                following = scheduler.timesteps[index + 1]
                given = scheduler.scale_model_input(latents, following)
                _, maps = self.predicted(given, following, text, places, offsets)
                loss = torch.stack([separation(one[0], [at for _, at in places]) for one in maps]).mean()
                slope = torch.autograd.grad(loss, latents)[0]
                latents = latents.detach() - self.length * latents.detach().norm() * slope / slope.norm()
        return latents

    def encoded(self, text: str) -> tuple[Tensor, ...]:
        """States ``(1, L, C)``, and SDXL's pooled text."""
        found = self.pipeline.encode_prompt(
            text, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return (found[0], found[2]) if self.sdxl else (found[0],)

    def plain_rows(self, name: str, states: Tensor) -> Tensor:
        """``W_0 h``."""
        kind, layer = name.split(".", 1)
        return states @ getattr(self.layers[layer], {"k": "to_k", "v": "to_v"}[kind]).weight.T

    def projected_alone(self, text: str, positions: Sequence[int]) -> dict[str, Tensor]:
        """``W_0 h`` of a prompt at some positions, of all layers."""
        states = self.encoded(text)[0][0, list(positions)]
        return {f"{kind}.{layer}": self.plain_rows(f"{kind}.{layer}", states) for layer in self.layers for kind in "kv"}

    def predicted(
        self, given: Tensor, timestep: Tensor, text: Sequence[Tensor], places: Places, offsets: Mapping | None
    ) -> tuple[Tensor, list[Tensor]]:
        """Predict noise, and return the attention map of every layer."""
        acting = places if timestep < self.start * 1000 else []

        def projected(name: str, states: Tensor) -> Tensor:
            rows = list(self.plain_rows(name, states)[0])
            for concept, positions in acting:
                for number, at in enumerate(positions):
                    own = concept[name][number]
                    rows[at] = own if offsets is None else rows[at] + own - offsets[name][number]
                if self.bind and name.startswith("k."):
                    rows[positions[0]] = rows[positions[-1]]
            return torch.stack(rows)[None]

        maps: list[Tensor] = []
        before = {layer: layer.processor for layer in self.layers.values()}
        for name, layer in self.layers.items():
            watched = Watched(partial(projected, f"k.{name}"), partial(projected, f"v.{name}"))
            watched.maps = maps
            layer.set_processor(watched)
        added = None
        if self.sdxl:
            added = {"text_embeds": text[1], "time_ids": torch.tensor([[64.0, 64.0, 0.0, 0.0, 64.0, 64.0]])}
        try:
            return self.unet(given, timestep, text[0], added_cond_kwargs=added).sample, maps
        finally:
            for layer, processor in before.items():
                layer.set_processor(processor)
