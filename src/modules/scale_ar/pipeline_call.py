"""What a call of either pipeline begins and ends with."""

from collections.abc import Sequence

from diffusers import DiffusionPipeline, ImagePipelineOutput
from PIL import Image
from torch import Tensor

from src.modules.scale_ar.generation import Generation, OnScale, generate

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


def check_call(num_images_per_prompt: int, output_type: str) -> None:
    """Refuse what cannot be drawn.

    Raises:
        ValueError: If there is no image to draw, or no such kind of output.
    """
    if num_images_per_prompt < 1:
        raise ValueError(f"num_images_per_prompt is {num_images_per_prompt}; give 1 or more")
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"output_type is {output_type!r}; choose one of {', '.join(OUTPUT_TYPES)}")


def drawn(
    pipeline: DiffusionPipeline, generation: Generation, hooks: Sequence[OnScale], output_type: str, return_dict: bool
) -> ImagePipelineOutput | tuple[list[Image.Image] | Tensor]:
    """Run all scales with a progress bar, and decode unless the last running sum is wanted."""
    with pipeline.progress_bar(total=generation.model.num_scales) as bar:
        images = generate(generation, [*hooks, lambda *_: bar.update()])
    if output_type != "latent":
        images = pipeline.image_processor.postprocess(pipeline.decode(images), output_type=output_type)
    return ImagePipelineOutput(images=images) if return_dict else (images,)
