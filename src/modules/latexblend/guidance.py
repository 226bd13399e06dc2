"""Blending guidance (LaTexBlend Eq. 15): a loss on attention maps that holds concepts together and keeps them apart.

In early denoising steps the latents move so that V* and its noun attend to the same place (g1) and different concepts
attend to different places (g2).

Shapes: B prompts, H heads, N cells of a feature map, L tokens, T tokens of one prompt's concepts.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from src.data.ranges import Number, Share1
from src.modules.backbones.unet import guidance_condition

Phrases = Sequence[Sequence[int]]
"""Token positions of each concept of one prompt: that of V*, then those of the noun."""
MAX_CELLS = 32 * 32
"""Most cells N of a feature map that counts: larger ones add little and cost the most memory."""
MAX_SIDE = 8
"""Side that maps are averaged down to, as the reference code does with its 32 x 32 maps."""
SHARPNESS = 100.0
"""Factor before the softmax over cells, needed because attention to any one token is small everywhere."""


@dataclass(frozen=True)
class BlendingGuidance:
    """Moves the latents down the gradient of ``separation_loss`` after each early step of a stock pipeline.

    The reference code steps by the raw gradient of a sum over all layers. This takes their mean and a step of fixed
    length, so that one setting suits any number of layers and concepts, any scheduler and any noise level.

    Args:
        num_steps: Number of guided steps, from the second denoising step on; 0 for none.
        step_size: Length of a step, as a share of the root mean square of the latents.

    Raises:
        ValueError: If either is out of range.
    """

    num_steps: Number = 0
    step_size: Share1 = 0.1

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.num_steps < 0 or not 0 < self.step_size <= 1:
            raise ValueError(
                f"blending_guidance has num_steps {self.num_steps} and step_size {self.step_size}; "
                "give 0 or more steps, and a step size in (0, 1]"
            )

    def check(self, pipeline: DiffusionPipeline) -> None:
        """Refuse a pipeline that cannot be guided.

        Raises:
            ValueError: If its calls take no callback at the end of a step.
        """
        if self.num_steps and not hasattr(pipeline, "_callback_tensor_inputs"):
            raise ValueError(
                f"a {type(pipeline).__name__} cannot be guided: its calls take no callback at the end of a step; leave "
                "method.blending_guidance out, or take a Stable Diffusion or SDXL backbone"
            )

    def arguments(self, pipeline: DiffusionPipeline, phrases: Sequence[Phrases]) -> dict[str, Any]:
        """Return the keyword arguments that make a pipeline's call guided; empty if there is nothing to guide.

        Args:
            pipeline: Stable Diffusion or SDXL, with the concepts already installed by ``blended``.
            phrases: Token positions of the concepts of every prompt in the batch.
        """
        if not self.num_steps or not any(phrases):
            return {}

        def after_step(pipeline: DiffusionPipeline, index: int, timestep: Tensor, state: dict[str, Tensor]) -> dict:
            timesteps = pipeline.scheduler.timesteps
            if index >= self.num_steps or index + 1 == len(timesteps):
                return {}
            gradient = _gradient(pipeline, timesteps[index + 1], state, phrases)
            return {"latents": _moved(state["latents"], gradient, self.step_size)}

        wanted = ("latents", "prompt_embeds", "add_text_embeds", "add_time_ids")
        inputs = [name for name in wanted if name in pipeline._callback_tensor_inputs]
        return {"callback_on_step_end": after_step, "callback_on_step_end_tensor_inputs": inputs}


def separation_loss(attention: Tensor, size: tuple[int, int], phrases: Phrases) -> Tensor:
    """Compute g1 + g2 in one layer: distances inside each concept, minus distances between concepts.

    The distance of two tokens is the symmetric KL divergence ``(KL(p||q) + KL(q||p)) / 2`` of their attention maps,
    each a distribution over cells. g1 adds for each concept the largest distance between V* and a token of its noun. g2
    subtracts for each ordered pair of concepts the largest distance from any token of the first to a token of the
    second, averaged over the tokens of the second.

    Args:
        attention: Attention of each cell to each token, shape ``(N, L)``; rows sum to 1.
        size: Rows and columns of the map, N cells in all.
        phrases: Token positions of at least one concept.
    """
    columns = attention[:, [at for phrase in phrases for at in phrase]].float()  # (N, T)
    maps = F.adaptive_avg_pool2d(columns.T.unflatten(1, size), (min(size[0], MAX_SIDE), min(size[1], MAX_SIDE)))
    log_share = torch.log_softmax(SHARPNESS * maps.flatten(1), dim=1)  # (T, cells)
    share = log_share.exp()
    distance = ((share[:, None] - share) * (log_share[:, None] - log_share)).sum(-1) / 2  # (T, T)
    stops = torch.tensor([len(phrase) for phrase in phrases]).cumsum(0).tolist()
    groups = [range(stop - len(phrase), stop) for stop, phrase in zip(stops, phrases, strict=True)]
    gathered = [distance[group[0], group[1:]].max() for group in groups]  # g1 of each concept
    parted = [distance[a][:, b].amax(0).mean() for a in groups for b in groups if a != b]  # g2 of each ordered pair
    return torch.stack(gathered).sum() - (torch.stack(parted).sum() if parted else 0.0)


@contextlib.contextmanager
def recorded_attention(unet: nn.Module) -> Iterator[dict[str, Tensor]]:
    """While active, record the attention map ``(B, N, L)`` of each cross-attention layer in every forward pass.

    Maps are averaged over heads and carry a gradient; they are computed in addition to the layer's own attention.
    """
    queries: dict[str, Tensor] = {}
    maps: dict[str, Tensor] = {}

    def keep_query(name: str):
        return lambda module, inputs, query: queries.update({name: query})

    def keep_map(name: str, heads: int):
        def hook(module: nn.Module, inputs: tuple, key: Tensor) -> None:
            query = queries.pop(name)
            if query.shape[1] <= MAX_CELLS:
                split_query, split_key = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (query, key))
                scores = split_query @ split_key.transpose(-1, -2) / math.sqrt(split_query.shape[-1])  # (B, H, N, L)
                maps[name] = scores.softmax(-1).mean(1)

        return hook

    layers = {name: module for name, module in unet.named_modules() if name.endswith("attn2")}
    # Stock attention computes queries before keys.
    handles = [layer.to_q.register_forward_hook(keep_query(name)) for name, layer in layers.items()]
    handles += [layer.to_k.register_forward_hook(keep_map(name, layer.heads)) for name, layer in layers.items()]
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()


def _gradient(
    pipeline: DiffusionPipeline, timestep: Tensor, state: Mapping[str, Tensor], phrases: Sequence[Phrases]
) -> Tensor:
    """Return the gradient of the mean loss over layers with respect to the latents, ``(B, C, h, w)``."""
    number = len(phrases)
    # The conditional rows of a guided batch are its last ones.
    added = None
    if "add_text_embeds" in state:
        added = {"text_embeds": state["add_text_embeds"][-number:], "time_ids": state["add_time_ids"][-number:]}
    with torch.enable_grad(), recorded_attention(pipeline.unet) as maps:
        latents = state["latents"].detach().requires_grad_()
        scaled = pipeline.scheduler.scale_model_input(latents, timestep).to(pipeline.unet.dtype)
        scale = guidance_condition(pipeline, number)
        pipeline.unet(scaled, timestep, state["prompt_embeds"][-number:], timestep_cond=scale, added_cond_kwargs=added)
        losses = [
            separation_loss(attention[row], attention_grid(attention.shape[1], latents.shape[-2:]), phrases[row])
            for attention in maps.values()
            for row in range(number)
            if phrases[row]
        ]
        return torch.autograd.grad(torch.stack(losses).sum() / len(maps), latents)[0]


def attention_grid(cells: int, size: Sequence[int]) -> tuple[int, int]:
    """Return rows and columns of a map of so many cells, from the size of the latents."""
    factor = round(math.sqrt(size[0] * size[1] / cells))
    return math.ceil(size[0] / factor), math.ceil(size[1] / factor)


def _moved(latents: Tensor, gradient: Tensor, step_size: float) -> Tensor:
    """Step down each image's gradient, by the given share of the root mean square of its latents."""
    places = list(range(1, latents.ndim))
    length, own = (part.float().square().mean(places, keepdim=True).sqrt() for part in (gradient, latents))
    # The gradient of an image without concepts is zero, so its latents stay.
    direction = gradient.float() / length.clamp(min=torch.finfo(torch.float32).tiny)
    return (latents.float() - step_size * own * direction).to(latents.dtype)
