"""GLIGEN (Li et al., CVPR 2023, arXiv 2301.07093): a UNet with gated layers that read what stands in which box.

Checkpoints are those of diffusers' ``StableDiffusionGLIGENPipeline``. Its UNet holds, between self-attention and
cross-attention of each block, a ``fuser`` that attends to tokens of objects, which ``position_net`` makes of boxes and
the pooled text states of phrases. Here these tokens come in by a hook, so that every call of the stock text-to-image
pipeline, with whatever else acts on its cross-attention, can be grounded.

Shapes: B prompts, D width of text.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from src.data.layout import Box
from src.modules.backbones.base import Backbone

MOST = 30
"""Objects that an image may have; the UNets were trained with as many places, most of them empty."""
SHARE = 0.3
"""Share of the steps, from the first one on, in which boxes are read, as the stock pipeline has it by default."""


class Grounded(NamedTuple):
    """An object: the phrase that describes it, and its box."""

    phrase: str
    box: Box


def is_grounded(denoiser: Any) -> bool:
    """Tell whether a denoiser reads boxes."""
    return hasattr(denoiser, "position_net")


@contextlib.contextmanager
def grounded(backbone: Backbone, objects: Sequence[Sequence[Grounded]]) -> Iterator[None]:
    """While active, the UNet reads the objects of every prompt in the first steps; afterwards it is what it was.

    Args:
        backbone: A GLIGEN checkpoint; any other is left alone, and so is this one if no prompt has an object.
        objects: What stands where, for each of the B prompts of a call.

    Raises:
        ValueError: If a prompt has more than ``MOST`` objects.
    """
    for each in objects:
        if len(each) > MOST:
            raise ValueError(f"the layout has {len(each)} boxes in one image, but GLIGEN reads {MOST}; leave some out")
    if not is_grounded(backbone.denoiser) or not any(objects):
        yield
        return
    boxes, embeddings, masks = grounding(backbone, objects)

    def before(unet: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        steps = backbone.pipeline.scheduler.timesteps
        timestep = torch.as_tensor(kwargs.get("timestep", args[1] if len(args) > 1 else None)).flatten()[0]
        if int((steps == timestep.to(steps)).nonzero()[0]) >= int(SHARE * len(steps)):
            return None
        # Rows of guidance stand before those of the prompts, and no object is there.
        guiding = len(args[0]) - len(masks)
        objects = {
            "boxes": torch.cat([boxes[:guiding], boxes]),
            "positive_embeddings": torch.cat([embeddings[:guiding], embeddings]),
            "masks": torch.cat([torch.zeros_like(masks[:guiding]), masks]),
        }
        given = kwargs.get("cross_attention_kwargs") or {}
        return args, {**kwargs, "cross_attention_kwargs": {**given, "gligen": objects}}

    handle = backbone.denoiser.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def grounding(backbone: Backbone, objects: Sequence[Sequence[Grounded]]) -> tuple[Tensor, Tensor, Tensor]:
    """Make what ``position_net`` reads, as the stock pipeline does.

    Args:
        backbone: A GLIGEN checkpoint.
        objects: What stands where in each image.

    Returns:
        Boxes ``(B, MOST, 4)``, pooled text states of the phrases ``(B, MOST, D)``, and which places hold an object,
        ``(B, MOST)`` of zeros and ones.
    """
    (tokenizer,), (encoder,) = backbone.tokenizers, backbone.text_encoders
    width = backbone.denoiser.config.cross_attention_dim
    boxes, embeddings, masks = (
        torch.zeros(len(objects), MOST, *rest, device=encoder.device, dtype=encoder.dtype)
        for rest in ((4,), (width,), ())
    )
    for row, each in enumerate(objects):
        if each:
            tokens = tokenizer([one.phrase for one in each], padding=True, return_tensors="pt").to(encoder.device)
            embeddings[row, : len(each)] = encoder(**tokens).pooler_output
            boxes[row, : len(each)] = torch.tensor([one.box for one in each])
            masks[row, : len(each)] = 1
    return boxes, embeddings, masks
