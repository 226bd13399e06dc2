"""Draw from pictures as well as from text: image to image, inpainting and ControlNet, by diffusers' own pipelines.

They are made of the parts of a backbone's pipeline and take its calls: what acts on the UNet acts there, too.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from PIL import Image, ImageOps

from src.data.first_looks import looks_local
from src.data.identity import place_digest
from src.data.images import content_hash, load_image
from src.data.schema import read_json
from src.modules.backbones.base import Backbone
from src.modules.backbones.tensors import DTYPES
from src.modules.backbones.unet import UNetBackbone

if TYPE_CHECKING:
    from diffusers import ControlNetModel


@dataclass(frozen=True)
class Pictures:
    """What a drawing starts from or keeps to; each is fitted to the image that is drawn.

    Attributes:
        image: Picture that is noised and drawn anew.
        strength: Share of the noise schedule that it is drawn through; None for the stock pipeline's own.
        mask: White where ``image`` is drawn anew, and black where it stays.
        control: What a ControlNet reads, such as edges.
    """

    image: Image.Image | None = None
    strength: float | None = None
    mask: Image.Image | None = None
    control: Image.Image | None = None

    @classmethod
    def read(cls, image: str | None, strength: float | None, mask: str | None, control: str | None) -> Self | None:
        """Read pictures from files; None where none is given.

        Raises:
            ValueError: If a file cannot be read, one needs another, or their sizes differ.
        """
        for name, value in (("mask", mask), ("strength", strength)):
            if value is not None and image is None:
                raise ValueError(f"{name}={value} changes a picture, and none is given: add image=PHOTO")
        if strength is not None and not 0 < strength <= 1:
            raise ValueError(f"strength is {strength}; give a share of the noise schedule in (0, 1], such as 0.6")
        if image is None and control is None:
            return None
        photo, masked, steering = (None if path is None else load_image(path) for path in (image, mask, control))
        if photo is not None and masked is not None and photo.size != masked.size:
            (width, height), (wide, high) = photo.size, masked.size
            raise ValueError(f"mask has {wide} x {high} pixels, but image has {width} x {height}; give one of its size")
        return cls(photo, strength, masked, steering)


class ConditionedPipeline:
    """Takes the calls of a backbone's text-to-image pipeline, and draws with the pictures in mind.

    Args:
        backbone: Stable Diffusion or SDXL; with ``control``, loaded with a ``controlnet``.
        given: The pictures.

    Raises:
        ValueError: If the model takes none, or a ControlNet is missing or left over.
    """

    def __init__(self, backbone: Backbone, given: Pictures) -> None:
        # These import every pipeline of diffusers, which most drawings need not wait for.
        from diffusers import AutoPipelineForImage2Image, AutoPipelineForInpainting, AutoPipelineForText2Image

        if not isinstance(backbone, UNetBackbone):
            raise ValueError(f"image, mask and control are for Stable Diffusion and SDXL, not for {backbone.name}")
        channels = backbone.unet.config.in_channels
        if given.mask is not None and channels != 4:
            raise ValueError(
                f"mask is for models whose latents have 4 channels, as all of Stable Diffusion and SDXL, but "
                f"{backbone.name} has {channels}: leave mask out"
            )
        place = backbone.checkpoint.controlnet if backbone.checkpoint else None
        if (place is None) != (given.control is None):
            missing = "control=FILE" if place else "backbone.controlnet=FOLDER"
            raise ValueError(f"a ControlNet needs a picture, and a picture for one needs a ControlNet: add {missing}")
        self.given, more = given, {}
        self.identity = f"{_hashes(given)} {given.strength}"
        if place is not None:
            more = {"controlnet": load_controlnet(place, backbone)}
            self.identity += f" {place_digest(_folder(place))}" if looks_local(place) else f" {place}"
        kind = AutoPipelineForText2Image if given.image is None else AutoPipelineForImage2Image
        self.pipeline = (AutoPipelineForInpainting if given.mask else kind).from_pipe(backbone.pipeline, **more)
        self.pipeline.set_progress_bar_config(disable=True)

    def __call__(self, *, height: int, width: int, **arguments: Any) -> Any:
        """Draw with the arguments of a text-to-image call.

        Raises:
            ValueError: If ``strength`` leaves no step, or a method draws in a way that such a pipeline does not take.
        """
        given, number = self.given, len(arguments["generator"])
        fitted = {
            name: [ImageOps.fit(one.convert("L" if name == "mask" else "RGB"), (width, height))] * number
            for name, one in (("image", given.image), ("mask", given.mask), ("control", given.control))
            if one is not None
        }
        steps, strength = arguments["num_inference_steps"], given.strength
        if strength is not None and int(steps * strength) < 1:
            raise ValueError(f"strength={strength} leaves none of {steps} steps; give more of one of them")
        first = {"image": fitted["control"]} if given.image is None else {"image": fitted["image"]}
        both = {"control_image": fitted["control"]} if given.image and given.control else {}
        masked = {"mask_image": fitted["mask"]} if given.mask else {}
        call = {**arguments, **first, **both, **masked, **({} if strength is None else {"strength": strength})}
        taken = inspect.signature(self.pipeline.__call__).parameters
        foreign = [name for name in call if name not in taken]
        if foreign:
            raise ValueError(f"this method sets {foreign[0]}, which a {type(self.pipeline).__name__} does not take")
        size = {"height": height, "width": width}
        return self.pipeline(**call, **{name: side for name, side in size.items() if name in taken})


def load_controlnet(place: str, backbone: UNetBackbone) -> "ControlNetModel":
    """Load a ControlNet of a folder or the hub, in the precision of a model and beside it.

    Raises:
        ValueError: If it is none, or of another model.
    """
    from diffusers import ControlNetModel

    width = backbone.unet.config.cross_attention_dim
    if looks_local(place):
        _check_config(place, read_json(_folder(place) / "config.json", "the configuration of a ControlNet"), width)
    name = str(backbone.dtype).removeprefix("torch.")
    model = ControlNetModel.from_pretrained(
        str(_folder(place)) if looks_local(place) else place, dtype=DTYPES[name], use_safetensors=True
    )
    _check_config(place, dict(model.config), width)
    return model.to(backbone.device).requires_grad_(False).eval()


def _check_config(place: str, config: Mapping[str, Any], width: int) -> None:
    kind, reads = config.get("_class_name", "ControlNetModel"), config.get("cross_attention_dim")
    if kind != "ControlNetModel":
        raise ValueError(f"backbone.controlnet={place} holds {kind}, but a ControlNetModel is needed")
    if reads != width:
        raise ValueError(
            f"backbone.controlnet={place} is of another model: it reads text of width {reads}, this one of {width}"
        )


def _folder(place: str) -> Path:
    return Path(place).expanduser()


def _hashes(given: Pictures) -> str:
    return " ".join("-" if one is None else content_hash(one) for one in (given.image, given.mask, given.control))
