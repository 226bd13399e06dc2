"""A scale-wise pipeline from the folder that ``save_pretrained`` wrote."""

import json
from pathlib import Path

from diffusers import DiffusionPipeline

from src.modules.backbone import DTYPES
from src.modules.scale_ar.infinity_pipeline import InfinityPipeline
from src.modules.scale_ar.switti_pipeline import SwittiPipeline

CLASSES = {one.__name__: one for one in (InfinityPipeline, SwittiPipeline)}


def load_saved(path: str, dtype: str = "float32") -> DiffusionPipeline:
    """An ``InfinityPipeline`` or a ``SwittiPipeline``, whichever the folder holds.

    Args:
        path: The folder.
        dtype: Of the weights, as torch names it.

    Raises:
        ValueError: If there is no such folder, it holds another pipeline, or ``dtype`` is unknown.
    """
    if dtype not in DTYPES:
        raise ValueError(f"backbone.dtype is {dtype!r}; choose one of {', '.join(DTYPES)}")
    index = Path(path) / "model_index.json"
    if not index.is_file():
        raise ValueError(
            f"there is no pipeline in {path}: {index} is missing; published weights have backbones of their own"
        )
    name = json.loads(index.read_text())["_class_name"]
    if name not in CLASSES:
        raise ValueError(f"{path} holds a {name}; what is wanted is one of {', '.join(CLASSES)}")
    return CLASSES[name].from_pretrained(path, dtype=DTYPES[dtype], local_files_only=True)
