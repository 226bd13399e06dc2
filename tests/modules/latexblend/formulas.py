"""LaTexBlend's training once more, in plain torch from the formulas of the paper: its loss and its bank.

Nothing of the method's own code is called here. What is stock stays stock: tokenizers, text encoders, the denoiser
with attention that is written out below.

Shapes: B samples, L tokens, S tokens of "a dog", C width of text, D width of one projection.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from torch.func import functional_call

TEMPLATES = (
    "{}",
    "a {}",
    "photo of {}",
    "a photo of {}",
    "a photo of a {}",
    "a fancy photo of a {}",
    "A close-up, detailed photo of {}",
)
"""The paper's seven; the slot takes "a dog", or V* in place of the article."""
LENGTH = 2
"""Tokens S of "a dog" and of "V* dog"."""


@dataclass
class Encoded:
    """States of prompts ``(B, L, C)``, pooled text ``(B, P)`` of SDXL, mask ``(B, L)`` of T5, where "a dog" starts."""

    states: Tensor
    pooled: Tensor | None
    mask: Tensor | None
    starts: list[int]


@dataclass
class Draw:
    """What chance decides for one photo and the class image beside it."""

    concept_template: int
    base_template: int
    noises: tuple[Tensor, Tensor]
    timesteps: tuple[int, int]


def drawn(seed: int, templates: int, shape: Sequence[int], with_prior: bool) -> Draw:
    """One generator draws both templates, then noise for photo and class image, then their timesteps."""
    generator = torch.Generator().manual_seed(seed)
    concept, base = torch.randint(templates, (2,), generator=generator).tolist()
    number = 2 if with_prior else 1
    noises = [torch.randn(*shape, generator=generator) for _ in range(number)]
    timesteps = [int(torch.randint(1000, (1,), generator=generator)) for _ in range(number)]
    return Draw(concept, base, (noises[0], noises[-1]), (timesteps[0], timesteps[-1]))


class WrittenOut:
    """Attention of one layer, with its own ways from text ``(B, L, C)`` to keys and to values ``(B, L, D)``."""

    def __init__(self, keys: Callable[[Tensor], Tensor], values: Callable[[Tensor], Tensor]) -> None:
        self.keys, self.values = keys, values

    def __call__(self, attn, hidden_states: Tensor, encoder_hidden_states: Tensor, attention_mask=None, **_) -> Tensor:
        query, key, value = (
            part.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for part in (attn.to_q(hidden_states), self.keys(encoder_hidden_states), self.values(encoder_hidden_states))
        )
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5  # (B, heads, N, L)
        if attention_mask is not None:
            scores = scores + attention_mask[:, None]
        return attn.to_out[0]((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))


class Written:
    """The method on one stock pipeline, with its own copies of everything that is trained.

    Args:
        pipeline: Stable Diffusion, SDXL or PixArt.
        changes: ``k.<layer>`` and ``v.<layer>`` to the change's factors: one ``(D, C)``, or ``(D, r)`` and ``(r, C)``.
        modifier: V* of each text encoder.
    """

    def __init__(
        self, pipeline: DiffusionPipeline, changes: Mapping[str, Sequence[Tensor]], modifier: Sequence[Tensor]
    ) -> None:
        self.pipeline = pipeline
        self.changes = {name: [_leaf(factor) for factor in factors] for name, factors in changes.items()}
        self.modifier = [_leaf(vector) for vector in modifier]
        self.sdxl, self.pixart = hasattr(pipeline, "text_encoder_2"), hasattr(pipeline, "transformer")
        self.denoiser = pipeline.transformer if self.pixart else pipeline.unet

    def encoded(self, texts: Sequence[str], with_modifier: bool) -> Encoded:
        """Encode prompts that end with "a dog"; V* takes the place of their last article."""
        pairs = [(self.pipeline.tokenizer, self.pipeline.text_encoder)]
        if self.sdxl:
            pairs.append((self.pipeline.tokenizer_2, self.pipeline.text_encoder_2))
        texts = [text.lower() for text in texts] if self.pixart else texts
        outputs, starts, mask = [], [], None
        for (tokenizer, encoder), vector in zip(pairs, self.modifier, strict=True):
            rows = [tokenizer(text).input_ids for text in texts]
            starts = [len(row) - 1 - LENGTH for row in rows]  # before the noun and the end token
            ids = torch.tensor(
                [row + [tokenizer.pad_token_id] * (tokenizer.model_max_length - len(row)) for row in rows]
            )
            mask = (
                (torch.arange(ids.shape[1]) < torch.tensor([[len(row)] for row in rows])).long()
                if self.pixart
                else None
            )
            table = encoder.get_input_embeddings().weight
            if with_modifier:
                ids[range(len(texts)), starts] = len(table)  # a word of its own, behind all others
            larger = torch.cat([table, vector[None]])
            tables = {name: larger for name, each in encoder.named_parameters(remove_duplicate=False) if each is table}
            given = {"attention_mask": mask} if self.pixart else {"output_hidden_states": True}
            outputs.append(functional_call(encoder, tables, (ids,), given))
        if self.sdxl:
            states = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
            return Encoded(states, outputs[1].text_embeds, None, starts)
        return Encoded(outputs[0].last_hidden_state, None, mask, starts)

    def trained(self, name: str, rows: Tensor) -> Tensor:
        """``W' e = (W_0 + change) e``."""
        linear = self._linear(name)
        first, *second = self.changes[name]
        change = first @ second[0] if second else first
        projected = rows @ (linear.weight + change).T
        return projected if linear.bias is None else projected + linear.bias

    def original(self, name: str, rows: Tensor) -> Tensor:
        """``W_0 e``."""
        linear = self._linear(name)
        projected = rows @ linear.weight.T
        return projected if linear.bias is None else projected + linear.bias

    def _linear(self, name: str) -> nn.Linear:
        kind, layer = name.split(".", 1)
        return getattr(self.denoiser.get_submodule(layer), {"k": "to_k", "v": "to_v"}[kind])

    def read(self, states: Tensor) -> Tensor:
        """What cross-attention gets: with PixArt, states go through its caption projection first."""
        return self.denoiser.caption_projection(states) if self.pixart else states

    def bank(self) -> dict[str, Tensor]:
        """Eq. 3: keys and values of "V* dog" in "photo of V* dog", layer by layer, ``(S, D)``."""
        text = self.encoded(["photo of a dog"], with_modifier=True)
        rows = self.read(text.states)[0, text.starts[0] : text.starts[0] + LENGTH]
        return {name: self.trained(name, rows) for name in self.changes}

    def losses(
        self,
        photos: tuple[Tensor, Tensor],
        class_images: Tensor | None,
        draws: Sequence[Draw],
        templates: Sequence[str] = TEMPLATES,
        base_flow: bool = True,
        gamma: float | None = None,
        faithful: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Eq. 6 of every photo, and of the class image beside it: ``(B,)`` each, zeros without class images.

        Args:
            photos: Latents ``(B, 4, h, w)`` and the mask of what counts in each, ``(B, 1, h, w)``.
            class_images: Latents ``(B, 4, h, w)``.
            draws: What chance decided for each photo.
            templates: Prompts that the draws choose among.
            base_flow: Whether the prompt around the concept is a plain one.
            gamma: Of min-SNR weighting.
            faithful: Whether the loss is a sum over latent channels, under the pooled text of the prompt with V*.
        """
        number = len(draws)
        concept = self.encoded([templates[draw.concept_template].format("a dog") for draw in draws], True)
        base = self.encoded([templates[draw.base_template].format("a dog") for draw in draws], False)
        clean, mask = photos
        noise = torch.stack([draw.noises[0] for draw in draws])
        timesteps = torch.tensor([draw.timesteps[0] for draw in draws])
        texts = [replace(base if base_flow else concept, pooled=concept.pooled if faithful else base.pooled)]
        if class_images is not None:
            texts.append(self.encoded(["dog"] * number, False))
            clean, mask = torch.cat([clean, class_images]), torch.cat([mask, torch.ones_like(mask)])
            noise = torch.cat([noise, *(draw.noises[1][None] for draw in draws)])
            timesteps = torch.cat([timesteps, torch.tensor([draw.timesteps[1] for draw in draws])])
        signal = self.signals[timesteps].view(-1, 1, 1, 1)
        noisy = signal.sqrt() * clean + (1 - signal).sqrt() * noise
        velocity = self.pipeline.scheduler.config.prediction_type == "v_prediction"
        target = signal.sqrt() * noise - (1 - signal).sqrt() * clean if velocity else noise
        squared = (self.predicted(noisy, timesteps, concept, base, texts, base_flow) - target) ** 2
        counted = mask.flatten(1).sum(1)
        errors = (squared * mask).flatten(1).sum(1) / (4 * counted)
        if gamma is not None:
            snr = (signal / (1 - signal)).flatten()
            errors = errors * torch.minimum(snr, torch.full_like(snr, gamma)) / (snr + 1 if velocity else snr)
        prior = torch.zeros(number) if class_images is None else errors[number:]
        return (4 if faithful else 1) * errors[:number], prior

    @property
    def signals(self) -> Tensor:
        """The share of signal ``a_t`` in ``x_t``, of all thousand steps."""
        config = self.pipeline.scheduler.config
        first, last = config.beta_start, config.beta_end
        if config.beta_schedule == "linear":
            return (1 - torch.linspace(first, last, 1000)).cumprod(0)
        return (1 - torch.linspace(first**0.5, last**0.5, 1000) ** 2).cumprod(0)

    def predicted(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        concept: Encoded,
        base: Encoded,
        texts: Sequence[Encoded],
        base_flow: bool = True,
    ) -> Tensor:
        """Predict with ``Blend(W_0 h_b, W' h_c)`` (Eq. 8) for photos, and with ``W' h`` for the class images."""
        phrases = self.read(concept.states)

        def projected(name: str, text: Tensor) -> Tensor:
            rows = []
            for row, states in enumerate(text):
                if row >= len(phrases) or not base_flow:
                    rows.append(self.trained(name, states))
                    continue
                start, first = concept.starts[row], base.starts[row]
                phrase = self.trained(name, phrases[row, start : start + LENGTH])
                plain = self.original(name, states)
                rows.append(torch.cat([plain[:first], phrase, plain[first + LENGTH :]]))
            return torch.stack(rows)

        layers = {name: layer for name, layer in self.denoiser.named_modules() if name.endswith("attn2")}
        before = {layer: layer.processor for layer in layers.values()}
        for name, layer in layers.items():
            layer.set_processor(WrittenOut(partial(projected, f"k.{name}"), partial(projected, f"v.{name}")))
        try:
            return self._called(noisy, timesteps, texts)
        finally:
            for layer, processor in before.items():
                layer.set_processor(processor)

    def _called(self, noisy: Tensor, timesteps: Tensor, texts: Sequence[Encoded]) -> Tensor:
        states = torch.cat([text.states for text in texts])
        if self.pixart:
            found = self.denoiser(
                noisy,
                encoder_hidden_states=states,
                encoder_attention_mask=torch.cat([text.mask for text in texts]),
                timestep=timesteps,
                added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            )
            return found.sample[:, :4]  # the other half of its channels is a variance
        added = None
        if self.sdxl:
            pooled, side = torch.cat([text.pooled for text in texts]), 8.0 * noisy.shape[-1]
            added = {"text_embeds": pooled, "time_ids": torch.tensor([[side, side, 0, 0, side, side]] * len(noisy))}
        return self.denoiser(noisy, timesteps, states, added_cond_kwargs=added).sample


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_()
