"""From an image to the input of a network, by the transform of the library that the network's weights come from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from timm.data import create_transform, resolve_data_config
from timm.data.transforms import str_to_interp_mode
from torch import Tensor
from torchvision.transforms import CenterCrop, Compose, Normalize, Resize, ToTensor


@dataclass(frozen=True)
class Preprocessing:
    """PIL image to network input.

    Attributes:
        transform: RGB image to float32 ``(3, H, W)``; called from several threads.
        settings: What the transform was made from: everything that could change a number.
    """

    transform: Callable[[Image.Image], Tensor]
    settings: Mapping[str, Any]

    def __call__(self, image: Image.Image) -> Tensor:
        """Float32 ``(3, H, W)``."""
        return self.transform(image.convert("RGB"))

    def __str__(self) -> str:
        """The settings in one line."""
        return ", ".join(f"{name} {_plain(value)}" for name, value in self.settings.items())


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "x".join(map(str, value)) if isinstance(value[0], int) else ",".join(f"{one:g}" for one in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def of_open_clip(config: Mapping[str, Any]) -> Preprocessing:
    """What open_clip does for evaluation.

    Args:
        config: The ``preprocess_cfg`` of weights: size, mean, std, interpolation, resize_mode and fill_color.
    """
    # What the weights do not say has open_clip's value.
    whole = PreprocessCfg(**config)
    return Preprocessing(image_transform_v2(whole, is_train=False), vars(whole))


def of_timm(config: Mapping[str, Any], resize: int | None = None, crop: int | None = None) -> Preprocessing:
    """What timm does for evaluation.

    Args:
        config: The ``pretrained_cfg`` of weights: input_size, mean, std, interpolation, crop_pct and crop_mode.
        resize: Length of the shorter side before the centre crop, in place of crop_pct and crop_mode.
        crop: Side of the crop, in place of input_size.
    """
    whole = resolve_data_config(pretrained_cfg=dict(config))
    if crop is not None:
        whole["input_size"] = (whole["input_size"][0], crop, crop)
    if resize is None:
        return Preprocessing(create_transform(**whole), whole)
    del whole["crop_pct"], whole["crop_mode"]
    resized = Resize(resize, str_to_interp_mode(whole["interpolation"]))
    steps = [resized, CenterCrop(whole["input_size"][-2:]), ToTensor(), Normalize(whole["mean"], whole["std"])]
    return Preprocessing(Compose(steps), {"resize": resize, **whole})
