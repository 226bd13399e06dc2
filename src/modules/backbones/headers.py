"""What a ``.safetensors`` of others holds, as its header says: names and shapes, before any weight is read."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from diffusers.loaders.single_file_utils import infer_diffusers_model_type
from safetensors import SafetensorError, safe_open

UNET = "model.diffusion_model."
FIRST_LAYER, LAST_LAYER = f"{UNET}input_blocks.0.0.weight", f"{UNET}out.2.weight"
LORA = ("lora_down.weight", "lora_A.weight", "lora.down.weight")
Shapes = Mapping[str, tuple[int, ...]]
"""Name of each tensor of a file to its shape."""


def read_header(path: Path) -> tuple[dict[str, str], Shapes]:
    """Read the metadata of a ``.safetensors`` and the shapes of its tensors; the weights stay on the disk.

    Raises:
        ValueError: If it is none, or damaged.
    """
    if path.suffix != ".safetensors":
        raise ValueError(f"{path} is no .safetensors; weights in another format are not read, for they can run code")
    try:
        with safe_open(path, "pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            return dict(file.metadata() or {}), shapes
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read as .safetensors ({error}); it may be truncated") from error


def described(metadata: Mapping[str, str], shapes: Shapes) -> str:
    """Say in a few words what a file holds that is no whole model."""
    if any(name.endswith(LORA) for name in shapes):
        return "a LoRA (give it as backbone.lora=[{path: FILE}])"
    if metadata.get("format", "").startswith("atelier"):
        return "what was learnt here, such as a concept (give it as bank.NAME=FILE)"
    known = infer_diffusers_model_type({name: Shaped(shape) for name, shape in shapes.items()})
    if known != "v1":
        return f"a model of the kind {known}"
    if FIRST_LAYER in shapes:
        return "a UNet without its text encoder or autoencoder"
    if any(name.endswith("decoder.conv_in.weight") for name in shapes):
        return "an autoencoder alone (give it as backbone.vae=FILE)"
    if holds(shapes, "down_blocks."):
        return "one part of a folder in diffusers' layout (give the folder)"
    return "nothing that diffusers knows"


@dataclass(frozen=True)
class Shaped:
    """What diffusers asks of a tensor to tell what it belongs to."""

    shape: tuple[int, ...]


def holds(shapes: Shapes, prefix: str) -> bool:
    """Tell whether a name starts so."""
    return any(name.startswith(prefix) for name in shapes)
