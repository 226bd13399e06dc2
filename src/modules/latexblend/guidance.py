"""Blending guidance (LaTexBlend Eq. 15): a loss on attention maps that holds concepts together and keeps them apart.

In early denoising steps the latents, or the predicted noise, move so that V* and its noun attend to the same place (g1)
and different concepts attend to different places (g2).

Shapes: B prompts, H heads, N cells of a feature map, L tokens, T tokens of one prompt's concepts.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from src.data.layout import Region, covered
from src.data.ranges import Number, Positive, Share1
from src.modules.backbones.base import Backbone
from src.modules.backbones.unet import guidance_condition
from src.modules.latexblend.attention import attention_grid, recorded_attention

Phrases = Sequence[Sequence[int]]
"""Token positions of each concept of one prompt: that of V*, then those of the noun."""
Regions = Sequence[Region | None]
"""Region of each concept of one prompt; None where a concept may stand anywhere."""
LAYOUT_SCALE = 30.0
"""Factor of the loss of a layout, which is in [0, 1]: it makes it as long as the distances of ``separation_loss``."""
MAX_SIDE = 8
"""Side that maps are averaged down to, as the reference code does with its 32 x 32 maps."""
WEIGHT = 0.2
"""Default of lambda in Eq. 15: on the world it moves latents about as far as a step of the other form."""
PURE_NOISE = 1e-6
"""Share of signal below which no noise is guided: there the clean image would move without bound."""
SHARPNESS = 100.0
"""Factor before the softmax over cells, needed because attention to any one token is small everywhere."""


@dataclass(frozen=True)
class BlendingGuidance:
    """Leads each early step of a stock pipeline down the gradient of ``separation_loss``, in one of two forms.

    ``latent`` moves the latents, as the reference code does. That steps by the raw gradient of a sum over all layers;
    this takes their mean and a step of fixed length, so that one setting suits any number of layers and concepts, any
    scheduler and any noise level. ``noise`` is Eq. 15: it adds the weighted gradient to the noise that is predicted.

    Args:
        num_steps: Number of guided steps; of ``latent`` from the second denoising step on; 0 for none.
        step_size: Length of a step of ``latent``, as a share of the root mean square of the latents.
        form: ``latent`` or ``noise``.
        weight: The paper's lambda, of ``noise``; the paper's value is not known.

    Raises:
        ValueError: If either is out of range.
    """

    num_steps: Number = 0
    step_size: Share1 = 0.1
    form: Literal["latent", "noise"] = field(default="latent", repr=False)
    weight: Positive = field(default=WEIGHT, repr=False)

    def __str__(self) -> str:
        """Return what an image depends on."""
        return repr(self) if self.form == "latent" else f"noise({self.num_steps}, {self.weight})"

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.num_steps < 0 or not 0 < self.step_size <= 1:
            raise ValueError(
                f"blending_guidance has num_steps {self.num_steps} and step_size {self.step_size}; "
                "give 0 or more steps, and a step size in (0, 1]"
            )
        if self.form not in ("latent", "noise") or not 0 < self.weight < math.inf:
            raise ValueError(
                f"blending_guidance has form {self.form!r} and weight {self.weight}; give latent or noise, and a "
                "weight above zero"
            )

    def check(self, pipeline: DiffusionPipeline) -> None:
        """Refuse a pipeline that cannot be guided.

        Raises:
            ValueError: If it has no UNet.
        """
        if self.num_steps and self.form == "latent" and not hasattr(pipeline, "unet"):
            raise ValueError(
                f"a {type(pipeline).__name__} cannot be guided at its latents: it has no UNet, which alone is called "
                "apart from the pipeline; leave method.blending_guidance out, or give "
                "method.blending_guidance.form=noise"
            )

    @contextlib.contextmanager
    def acting(
        self, backbone: Backbone, phrases: Sequence[Phrases], regions: Sequence[Regions] | None = None
    ) -> Iterator[dict[str, Any]]:
        """While active, calls of the backbone's pipeline are guided if they take the keyword arguments that it yields.

        Args:
            backbone: The model, with the concepts already installed by ``blended``.
            phrases: Token positions of the concepts of every prompt in the batch.
            regions: Their regions; None where there is no layout.
        """
        if self.form == "latent" or not self.num_steps or not any(phrases):
            yield self.arguments(backbone.pipeline, phrases, regions)
            return
        hook = _NoiseGuidance(self, backbone, phrases, regions)
        handle = backbone.denoiser.register_forward_hook(hook, with_kwargs=True)
        try:
            yield {}
        finally:
            handle.remove()

    def arguments(
        self, pipeline: DiffusionPipeline, phrases: Sequence[Phrases], regions: Sequence[Regions] | None = None
    ) -> dict[str, Any]:
        """Return the keyword arguments that make a pipeline's call guided; empty if there is nothing to guide.

        Args:
            pipeline: Stable Diffusion or SDXL, with the concepts already installed by ``blended``.
            phrases: Token positions of the concepts of every prompt in the batch.
            regions: Their regions; None where there is no layout.
        """
        if not self.num_steps or not any(phrases):
            return {}

        def after_step(pipeline: DiffusionPipeline, index: int, timestep: Tensor, state: dict[str, Tensor]) -> dict:
            timesteps = pipeline.scheduler.timesteps
            if index >= self.num_steps or index + 1 == len(timesteps):
                return {}
            gradient = _latent_gradient(pipeline, timesteps[index + 1], state, phrases, regions)
            return {"latents": _moved(state["latents"], gradient, self.step_size)}

        wanted = ("latents", "prompt_embeds", "add_text_embeds", "add_time_ids")
        inputs = [name for name in wanted if name in pipeline._callback_tensor_inputs]
        return {"callback_on_step_end": after_step, "callback_on_step_end_tensor_inputs": inputs}


def separation_loss(attention: Tensor, size: tuple[int, int], phrases: Phrases) -> Tensor:
    """Compute g1 + g2 in a layer: distances inside each concept, minus distances between concepts.

    The distance of two tokens is the symmetric KL divergence ``(KL(p||q) + KL(q||p)) / 2`` of their attention maps,
    each a distribution over cells. g1 adds for each concept the largest distance between V* and a token of its noun. g2
    subtracts for each ordered pair of concepts the largest distance from any token of the first to a token of the
    second, averaged over the tokens of the second.

    Args:
        attention: Attention of each cell to each token, shape ``(N, L)``, or ``(M, N, L)`` of M layers; rows sum to 1.
        size: Rows and columns of the map, N cells in all.
        phrases: Token positions of at least one concept.

    Returns:
        The loss, a scalar, or one of each layer, ``(M,)``.
    """
    columns = attention[..., [at for phrase in phrases for at in phrase]].float().transpose(-1, -2)  # (..., T, N)
    maps = F.adaptive_avg_pool2d(columns.unflatten(-1, size), (min(size[0], MAX_SIDE), min(size[1], MAX_SIDE)))
    log_share = torch.log_softmax(SHARPNESS * maps.flatten(-2), dim=-1)  # (..., T, cells)
    share = log_share.exp()
    share_gap, log_gap = (each[..., :, None, :] - each[..., None, :, :] for each in (share, log_share))
    distance = (share_gap * log_gap).sum(-1) / 2  # (..., T, T)
    groups = distance.split([len(phrase) for phrase in phrases], dim=-2)
    stops = torch.tensor([len(phrase) for phrase in phrases]).cumsum(0).tolist()
    nouns = [slice(stop - len(phrase) + 1, stop) for stop, phrase in zip(stops, phrases, strict=True)]
    gathered = [group[..., 0, noun].amax(-1) for group, noun in zip(groups, nouns, strict=True)]  # g1 of each concept
    farthest = torch.stack([group.amax(-2) for group in groups], dim=-2)  # (..., concepts, T)
    means = [farthest[..., noun.start - 1 : noun.stop].mean(-1) for noun in nouns]
    parted = torch.stack(means, dim=-1)  # (..., concepts, concepts), g2 of each ordered pair, and each with itself
    apart = parted.sum((-1, -2)) - parted.diagonal(dim1=-2, dim2=-1).sum(-1)
    return torch.stack(gathered).sum(0) - apart


def layout_loss(attention: Tensor, size: tuple[int, int], phrases: Phrases, regions: Sequence[Region]) -> Tensor:
    """Compute how much of the attention to concepts is outside of their regions.

    It is the square of the share that is outside, mean over a concept's tokens, summed over concepts.

    Args:
        attention: Attention of each cell to each token, shape ``(N, L)``, or ``(M, N, L)`` of M layers.
        size: Rows and columns of the map, N cells in all.
        phrases: Token positions of concepts.
        regions: Region of each.

    Returns:
        The loss, a scalar, or one of each layer, ``(M,)``.
    """
    losses = []
    for phrase, region in zip(phrases, regions, strict=True):
        columns = attention[..., list(phrase)].float()  # (..., N, S)
        inside = covered(region, *size).to(columns).flatten() @ columns  # (..., S)
        losses.append((1 - inside / columns.sum(-2)).square().mean(-1))
    return torch.stack(losses).sum(0)


def _loss(attention: Tensor, size: tuple[int, int], phrases: Phrases, regions: Regions | None) -> Tensor:
    """Lead concepts that have a region there, and the others together and apart."""
    given = list(regions or [None] * len(phrases))
    free = [phrase for phrase, region in zip(phrases, given, strict=True) if region is None]
    placed = [(phrase, region) for phrase, region in zip(phrases, given, strict=True) if region is not None]
    loss = separation_loss(attention, size, free) if free else attention.new_zeros(())
    if placed:
        loss = loss + LAYOUT_SCALE * layout_loss(attention, size, *map(list, zip(*placed, strict=True)))
    return loss


class _NoiseGuidance:
    """A hook on the denoiser that adds ``weight`` times the gradient to the noise that it predicts, Eq. 15.

    The gradient is with respect to the denoiser's own input, ``x_t`` of unit variance, which is the same for every
    scheduler, and it takes one pass more of the conditional rows. It is added to conditional and unconditional rows, so
    that it stands in their combination as it is, whatever the guidance scale. As every stock pipeline does, the call
    gives its latents by position.
    """

    def __init__(
        self,
        guidance: BlendingGuidance,
        backbone: Backbone,
        phrases: Sequence[Phrases],
        regions: Sequence[Regions] | None,
    ) -> None:
        self.guidance, self.backbone, self.phrases, self.regions = guidance, backbone, phrases, regions
        self.begun: list[float] = []

    def __call__(self, denoiser: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        timestep = kwargs["timestep"] if "timestep" in kwargs else args[1]
        now = float(torch.as_tensor(timestep).flatten()[0])
        # Some schedulers call the denoiser twice at a timestep.
        if now not in self.begun:
            self.begun.append(now)
        factor = self._factor(now)
        if len(self.begun) > self.guidance.num_steps or factor == 0:
            return output
        gradient = self._gradient(denoiser, args, kwargs)
        predicted = output[0].clone()  # (rows, C or 2 C, h, w); a second half is a variance
        change = self.guidance.weight * factor * gradient
        predicted[:, : change.shape[1]] += change.repeat(len(predicted) // len(change), 1, 1, 1).to(predicted)
        return (predicted, *output[1:]) if isinstance(output, tuple) else type(output)(predicted)

    def _gradient(self, denoiser: nn.Module, args: tuple, kwargs: dict) -> Tensor:
        rows, number = len(args[0]), len(self.phrases)
        _, *others = _last(args, rows, number)
        named = _last(kwargs, rows, number)
        # The hooks of a call, this one among them, do not run: the blended text is that of the call that they are in.
        return _gradient(
            denoiser,
            args[0][-number:],
            lambda latents: denoiser.forward(latents, *others, **named),
            self.phrases,
            self.regions,
        )

    def _factor(self, timestep: float) -> float:
        """What a change of the noise by 1 changes in what the denoiser predicts, at the same ``x_t``; 0 at pure noise.

        ``x_t = sqrt(a) x_0 + sqrt(1 - a) noise`` and ``v = sqrt(a) noise - sqrt(1 - a) x_0``; in a flow,
        ``x = (1 - s) x_0 + s noise`` and ``v = noise - x_0``.
        """
        if not hasattr(self.backbone.noise_scheduler, "alphas_cumprod"):
            clean = 1 - timestep / self.backbone.last_timestep
            return 1 / clean if clean**2 >= PURE_NOISE else 0.0
        shares = self.backbone.noise_scheduler.alphas_cumprod
        below = shares[math.floor(timestep)]
        signal = float(below + (shares[math.ceil(timestep)] - below) * (timestep % 1))
        if signal < PURE_NOISE:
            return 0.0
        kind = self.backbone.noise_scheduler.config.prediction_type
        return {"epsilon": 1.0, "v_prediction": signal**-0.5, "sample": -((1 / signal - 1) ** 0.5)}[kind]


def _last(value: Any, rows: int, number: int) -> Any:
    """Cut the last ``number`` rows out of every tensor of ``rows``."""
    if isinstance(value, Mapping):
        return {name: _last(one, rows, number) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_last(one, rows, number) for one in value)
    return value[-number:] if torch.is_tensor(value) and value.ndim and len(value) == rows else value


def _latent_gradient(
    pipeline: DiffusionPipeline,
    timestep: Tensor,
    state: Mapping[str, Tensor],
    phrases: Sequence[Phrases],
    regions: Sequence[Regions] | None,
) -> Tensor:
    """Return the gradient at the latents, which a scheduler may scale before the denoiser sees them."""
    number = len(phrases)
    # The conditional rows of a guided batch are its last ones.
    added = None
    if "add_text_embeds" in state:
        added = {"text_embeds": state["add_text_embeds"][-number:], "time_ids": state["add_time_ids"][-number:]}
    scale = guidance_condition(pipeline, number)

    def call(latents: Tensor) -> None:
        scaled = pipeline.scheduler.scale_model_input(latents, timestep).to(pipeline.unet.dtype)
        pipeline.unet(scaled, timestep, state["prompt_embeds"][-number:], timestep_cond=scale, added_cond_kwargs=added)

    return _gradient(pipeline.unet, state["latents"], call, phrases, regions)


def _gradient(
    denoiser: nn.Module,
    latents: Tensor,
    call: Callable[[Tensor], Any],
    phrases: Sequence[Phrases],
    regions: Sequence[Regions] | None = None,
) -> Tensor:
    """Return the gradient of the mean loss over layers with respect to the latents, ``(B, C, h, w)``.

    Args:
        denoiser: The network whose attention counts.
        latents: Latents of B prompts, ``(B, C, h, w)``.
        call: Passes latents through the denoiser.
        phrases: Token positions of the concepts of every prompt.
        regions: Their regions; None where there is no layout.
    """
    given: Sequence[Regions | None] = regions or [None] * len(phrases)
    with torch.enable_grad(), recorded_attention(denoiser) as maps:
        latents = latents.detach().requires_grad_()
        call(latents)
        # Layers of one size together: a UNet has many, and each alone takes many small operations.
        sizes = {each.shape[1] for each in maps.values()}
        stacked = {cells: torch.stack([each for each in maps.values() if each.shape[1] == cells], 1) for cells in sizes}
        losses = [
            _loss(layers[row], attention_grid(cells, latents.shape[-2:]), phrases[row], given[row]).sum()
            for cells, layers in stacked.items()  # (B, M, N, L) each
            for row in range(len(phrases))
            if phrases[row]
        ]
        return torch.autograd.grad(torch.stack(losses).sum() / len(maps), latents)[0]


def _moved(latents: Tensor, gradient: Tensor, step_size: float) -> Tensor:
    """Step down each image's gradient, by the given share of the root mean square of its latents."""
    places = list(range(1, latents.ndim))
    length, own = (part.float().square().mean(places, keepdim=True).sqrt() for part in (gradient, latents))
    # The gradient of an image without concepts is zero, so its latents stay.
    direction = gradient.float() / length.clamp(min=torch.finfo(torch.float32).tiny)
    return (latents.float() - step_size * own * direction).to(latents.dtype)
