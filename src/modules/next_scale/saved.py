"""Load a scale-wise pipeline from the folder that ``save_pretrained`` wrote."""

import sys
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from src.data.first_looks import ModelPlace
from src.data.identity import pipeline_parts
from src.data.known_words import KnownWords
from src.data.model_index import read_model_index
from src.modules.backbones.tensors import DTYPES
from src.modules.next_scale.infinity.autoencoder import BSQTokenizer
from src.modules.next_scale.infinity.pipeline import InfinityPipeline
from src.modules.next_scale.infinity.transformer import InfinityTransformer
from src.modules.next_scale.loading import Placement
from src.modules.next_scale.pipeline import NextScalePipeline
from src.modules.next_scale.switti.autoencoder import VQVAE
from src.modules.next_scale.switti.pipeline import SwittiPipeline
from src.modules.next_scale.switti.transformer import SwittiTransformer

CLASSES = {one.__name__: one for one in (InfinityPipeline, SwittiPipeline)}
# Folders that earlier versions wrote name our classes by the modules of that time, which have moved since. Diffusers
# looks a class up in sys.modules, so the old names stand there as well.
for earlier, module in {
    "infinity": InfinityTransformer.__module__,
    "bsq_autoencoder": BSQTokenizer.__module__,
    "switti": SwittiTransformer.__module__,
    "vqvae": VQVAE.__module__,
}.items():
    sys.modules.setdefault(f"src.modules.scale_ar.{earlier}", sys.modules[module])


def load_saved(path: ModelPlace, dtype: str = "float32", placement: Placement | None = None) -> NextScalePipeline:
    """Load an ``InfinityPipeline`` or a ``SwittiPipeline``, whichever the folder holds.

    Args:
        path: Folder with a ``model_index.json``.
        dtype: Precision of the weights, as torch names it.
        placement: Where the parts of the pipeline work; by default on the CPU.

    Raises:
        ValueError: If there is no such folder, it holds another pipeline or is damaged, or ``dtype`` is unknown.
    """
    if dtype not in DTYPES:
        raise ValueError(f"backbone.dtype is {dtype!r}; choose one of {', '.join(DTYPES)}")
    index = Path(path) / "model_index.json"
    if not index.is_file():
        raise ValueError(
            f"there is no pipeline in {path}: {index} is missing; published weights have backbones of their own"
        )
    try:
        name = read_model_index(path)["_class_name"]
        pipeline = _read(path, name, dtype=DTYPES[dtype], local_files_only=True, use_safetensors=True)
    except (OSError, SafetensorError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"the pipeline in {path} is incomplete or damaged; fetch it again ({reason})") from error
    pipeline.parts = pipeline_parts(path)
    pipeline.known_words = KnownWords.read(path)
    return (placement or Placement()).placed(pipeline)


def _read(path: str, name: str, **options: Any) -> NextScalePipeline:
    if name not in CLASSES:
        raise ValueError(f"{path} holds a {name}; what is wanted is one of {', '.join(CLASSES)}")
    return CLASSES[name].from_pretrained(path, **options)
