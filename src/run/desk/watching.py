"""What is to be seen while a picture is drawn: how far it is, how it will look, and where its concepts look.

Shapes: R rows of a pass, C latent channels, h x w cells of the latents, N cells of a feature map, L tokens.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from src.modules.next_scale.loop import Generation
from src.modules.next_scale.pipeline import NextScalePipeline

MOST_CELLS = 32
"""Side that latents are averaged down to before they are decoded: of a small preview, the whole is to be seen."""
OnStep = Callable[[float, Callable[[], Image.Image | None]], None]
"""Is told which share of a picture is done, in (0, 1], and what makes a preview of it."""


@contextmanager
def watched(generator: Any, on_step: OnStep) -> Iterator[None]:
    """While active, ``on_step`` is called after every pass of the denoiser or transformer; pictures stay the same.

    What it raises ends the drawing.
    """
    backbone: Any = getattr(generator, "backbone", None)
    if isinstance(backbone, NextScalePipeline):
        backbone.watchers = [_of_scales(backbone, on_step)]
        try:
            yield
        finally:
            backbone.watchers = []
    elif hasattr(backbone, "denoiser"):
        hook = _of_steps(generator, on_step)
        handle = backbone.denoiser.register_forward_hook(hook, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()
    else:
        yield


def _of_scales(pipeline: NextScalePipeline, on_step: OnStep) -> Callable[[int, Generation], None]:
    def after_scale(scale_index: int, generation: Generation) -> None:
        def preview() -> Image.Image:
            pixels = pipeline.decode(generation.feature[-1:])  # The styled path stands behind the content.
            return pipeline.image_processor.postprocess(pixels, output_type="pil")[0]

        on_step((scale_index + 1) / generation.model.num_scales, preview)

    return after_scale


def _of_steps(generator: Any, on_step: OnStep) -> Callable[..., None]:
    backbone, seen = generator.backbone, set[float]()
    read: Any = None
    passes: list[Tensor] = []

    def after_pass(module: Any, args: tuple, named: dict, output: Any) -> None:
        noisy: Any = args[0] if args else named.get("sample", named.get("hidden_states"))
        timestep = torch.as_tensor(named.get("timestep", args[1] if len(args) > 1 else 0)).flatten()[0]
        # A step may take several passes of the same latents, the prompt's first.
        nonlocal read, passes
        passes = [output[0] if isinstance(output, tuple) else output.sample, *(passes if noisy is read else [])]
        read, predicted = noisy, torch.cat(passes)
        seen.add(float(timestep))  # A pipeline may count its time from 1000 or from 1.
        steps = len(backbone.pipeline.scheduler.timesteps)

        def preview() -> Image.Image | None:
            try:
                x, prediction = (backbone.as_latents(each, named).float() for each in (noisy, predicted))
                return _preview(generator, x, prediction, float(timestep))
            except (AttributeError, RuntimeError, TypeError, ValueError):
                return None  # Parts that wait elsewhere to save memory: drawn without previews.

        on_step(min(len(seen) / max(steps, 1), 1.0), preview)

    return after_pass


@torch.no_grad()
def _preview(generator: Any, x: Tensor, prediction: Tensor, timestep: float) -> Image.Image:
    """Decode the clean latents that a prediction stands for, ``(R, C, h, w)``."""
    backbone = generator.backbone
    if len(prediction) == 2:
        scale = float(generator.sampling.get("guidance_scale") or 1)
        prediction = prediction[:1] + scale * (prediction[1:] - prediction[:1])
    if not hasattr(backbone.noise_scheduler, "alphas_cumprod"):
        # Of flow matching: z = (1 - sigma) x_0 + sigma noise, and v = noise - x_0.
        clean = x[-1:] - timestep / backbone.last_timestep * prediction[-1:]
    else:
        signal = backbone.noise_scheduler.alphas_cumprod[int(timestep)].to(x)
        kind = backbone.noise_scheduler.config.prediction_type
        if kind == "v_prediction":
            clean = signal.sqrt() * x[-1:] - (1 - signal).sqrt() * prediction[-1:]
        elif kind == "sample":
            clean = prediction[-1:]
        else:
            clean = (x[-1:] - (1 - signal).sqrt() * prediction[-1:]) / signal.sqrt()
    size = [min(side, MOST_CELLS) for side in clean.shape[-2:]]
    pixels = backbone.decode_latents(F.interpolate(clean, size=size, mode="area"))
    return VaeImageProcessor().postprocess(pixels, output_type="pil")[0]
