"""The base of Infinity's and Switti's pipelines: checks before a call, decoding after it, settings for generators."""

import inspect
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from src.data.finite import check_finite
from src.data.identity import joined, parts_in_memory
from src.data.known_words import KnownWords
from src.modules.generator import check_names
from src.modules.next_scale.loop import Generation, OnScale, generate
from src.modules.next_scale.memory import PeakMemory, forked, room_or_raise


class NextScalePipeline(DiffusionPipeline, ABC):
    """What Infinity's and Switti's pipelines have in common; a method for scale-wise models needs nothing else.

    Attributes:
        sampling: The model's own values of the arguments that a call leaves out.
        parts: Part of the pipeline to a hash of its files; None for a pipeline that was made in memory.
        known_words: The words that it was taught, where it carries their list.
        watchers: Hooks that look on at every call, behind its own; they change nothing.
    """

    sampling: dict[str, Any]
    parts: Mapping[str, str] | None = None
    known_words: KnownWords | None = None
    watchers: Sequence[OnScale] = ()

    @property
    @abstractmethod
    def num_scales(self) -> int:
        """Number of scales of an image of the default size."""

    @abstractmethod
    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Refuse prompts that are longer than the text encoder takes.

        Raises:
            ValueError: If there is one.
        """

    @abstractmethod
    def encode_image(self, images: Sequence[Image.Image], num_scales: int) -> Tensor:
        """Encode images to the running sum of their codes after the first scales, ``F_s``: ``(B, d, H, W)``."""

    @abstractmethod
    def decode(self, feature: Tensor) -> Tensor:
        """Decode the last running sum ``(B, d, H, W)`` to images ``(B, 3, H s, W s)``, s pixels to a cell's side."""


def model_identity(pipeline: NextScalePipeline) -> str:
    """Hash every part of a pipeline, and name its precision: what an image depends on beside settings."""
    return f"{joined(pipeline.parts or parts_in_memory(pipeline))} {pipeline.transformer.dtype}"


OUTPUT_TYPES = ("pil", "np", "pt", "latent")
FEWER = "draw fewer images at a time (method.batch_size=1), or smaller ones"
OFFLOAD = ", or let other parts wait in main memory (backbone.placement.offload=true)"
TILES = "decode in overlapping squares (backbone.placement.tiling=true), or draw fewer images at a time"
SHOWN = 60
"""Number of characters that a message shows of a prompt."""


def check_call(num_images_per_prompt: int, output_type: str) -> None:
    """Refuse a call that cannot be drawn.

    Raises:
        ValueError: If there is no image to draw, or no such kind of output.
    """
    if num_images_per_prompt < 1:
        raise ValueError(f"num_images_per_prompt is {num_images_per_prompt}; give 1 or more")
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"output_type is {output_type!r}; choose one of {', '.join(OUTPUT_TYPES)}")


def check_room(
    pipeline: DiffusionPipeline, peak: PeakMemory, images: int, hooks: Sequence[OnScale], output_type: str
) -> None:
    """Refuse a batch that would not fit into memory, before its text is encoded.

    Raises:
        ValueError: If it would not fit.
    """
    device = pipeline._execution_device
    paths = forked(hooks, images)
    waiting = waiting_bytes(pipeline.transformer, device)
    drawing = waiting + peak.drawing(images, paths, device)
    decoding = 0 if output_type == "latent" else waiting_bytes(pipeline.vae, device) + peak.decoding(paths)
    advice = FEWER + (OFFLOAD if device.type == "cuda" and not waiting else "")
    if decoding > drawing and pipeline.vae.tile is None:
        advice = TILES
    room_or_raise(max(drawing, decoding), device, f"drawing {images} images at a time", advice)


def waiting_bytes(part: nn.Module, device: torch.device) -> int:
    """Return the bytes of weights that are offloaded: they have yet to come to the device."""
    return sum(weights.nbytes for weights in part.parameters() if weights.device.type != device.type)


def num_tokens(tokenizer: PreTrainedTokenizerBase, prompt: str) -> int:
    """Count the tokens of a prompt, without truncation."""
    return len(tokenizer(prompt, verbose=False).input_ids)


def check_lengths(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], limit: int) -> None:
    """Refuse prompts that would have to be truncated.

    Raises:
        ValueError: If one has more than ``limit`` tokens.
    """
    for prompt in prompts:
        length = num_tokens(tokenizer, prompt)
        if length > limit:
            raise ValueError(
                f"a prompt of {length} tokens, but the text encoder takes {limit}: shorten "
                f"{textwrap.shorten(prompt, SHOWN)!r}, or give truncate=True (+method.sampling.truncate=true) to cut it"
            )


def drawn(
    pipeline: NextScalePipeline, generation: Generation, hooks: Sequence[OnScale], output_type: str, return_dict: bool
) -> ImagePipelineOutput | tuple[list[Image.Image] | Tensor]:
    """Run all scales with a progress bar, and decode the result unless ``output_type`` is ``latent``.

    Raises:
        ValueError: If logits or pixels are not finite.
    """
    with pipeline.progress_bar(total=generation.model.num_scales) as bar:
        images = generate(generation, [*hooks, *pipeline.watchers, lambda *_: bar.update()])
    # Decoding needs the memory.
    generation.cache.clear()
    generation.condition.clear()
    if output_type != "latent":
        decoded = pipeline.decode(images)
        check_finite(decoded, "the pixels that were drawn")
        images = pipeline.image_processor.postprocess(decoded, output_type=output_type)
    pipeline.maybe_free_model_hooks()
    return ImagePipelineOutput(images=images) if return_dict else (images,)


PER_REQUEST = ("prompt", "num_images_per_prompt", "generator", "output_type", "return_dict", "callback_on_scale_end")
"""Arguments that the generator itself passes for each request."""


class CallSettings:
    """Arguments of a pipeline's call that are the same for every request.

    Args:
        pipeline: The pipeline that is called.
        given: Name to value; None stands for the model's own value.

    Raises:
        ValueError: If the call has no such argument, the generator itself passes it, or the negative prompt is too
            long for the text encoder and is not to be cut.
    """

    def __init__(self, pipeline: NextScalePipeline, given: Mapping[str, Any]) -> None:
        parameters = inspect.signature(type(pipeline).__call__).parameters
        check_names("method.sampling", given, [name for name in parameters if name not in ("self", *PER_REQUEST)])
        own = pipeline.sampling
        self.arguments = {name: own.get(name) if value is None else value for name, value in given.items()}
        self._model_settings = pipeline.config.sampling or {}
        negative = self.arguments.get("negative_prompt")
        if negative and not self.arguments.get("truncate"):
            pipeline.check_prompts([negative])

    def __str__(self) -> str:
        """List everything that the method or the model has set, in one line."""
        settings = {**self._model_settings, **self.arguments}
        return " ".join(f"{name}={value}" for name, value in sorted(settings.items()))
