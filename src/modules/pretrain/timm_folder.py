"""Writes a timm model as the folder that ``timm.create_model("local-dir:FOLDER", pretrained=True)`` reads."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn


def save_timm_folder(
    folder: str | Path, model: nn.Module, architecture: str, model_args: dict[str, Any], image_size: int = 64
) -> None:
    """Write ``config.json`` and half-precision ``model.safetensors``.

    Args:
        folder: Made if need be.
        model: What ``timm.create_model(architecture, **model_args)`` built.
        architecture: Name of the timm model.
        model_args: Plain values.
        image_size: Side of the images it was trained on; they are expected in [-1, 1].
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pretrained_cfg = {
        "input_size": [3, image_size, image_size],
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "num_classes": model.num_classes,
        # timm would otherwise look for the names that the architecture's own weights use.
        "first_conv": None,
        "classifier": None,
    }
    config = {
        "architecture": architecture,
        "num_classes": model.num_classes,
        "num_features": model.num_features,
        "model_args": model_args,
        "pretrained_cfg": pretrained_cfg,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    state = {name: _half(tensor) for name, tensor in model.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def _half(tensor: Tensor) -> Tensor:
    return (tensor.detach().half() if tensor.is_floating_point() else tensor.detach()).contiguous()
