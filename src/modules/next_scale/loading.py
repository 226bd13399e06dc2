"""Load weights into our classes: every tensor is accounted for, in its precision and on its device."""

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import DiffusionPipeline
from diffusers.models.modeling_utils import ModelMixin
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from src.data.identity import place_identity
from src.data.schema import RefusedFileError, read_json
from src.modules.generator import usable_device


class PartlyExact(ModelMixin):
    """A diffusers model whose ``exact`` submodules and parameters stay in float32 when it is loaded.

    Diffusers recognises the parts of a pipeline by the name ``ModelMixin`` in their module, so subclasses name that
    base again.
    """

    exact: tuple[str, ...] = ()

    @classmethod
    def from_pretrained(cls, path: Any, **options: Any) -> "PartlyExact":
        """Load like any diffusers model; ``dtype`` is the precision of the parts that are not ``exact``.

        Raises:
            ValueError: If weights and configuration do not fit; diffusers would fill in random weights.
        """
        dtype = options.pop("dtype", None) or options.pop("torch_dtype", None)
        try:
            model, loaded = super().from_pretrained(path, output_loading_info=True, **options)
        except ValueError as error:
            reason = str(error).split(". ")[0]
            raise ValueError(f"the weights in {path} do not fit the config.json beside them ({reason})") from error
        for what, names in (("lack", loaded["missing_keys"]), ("have, beside what fits,", loaded["unexpected_keys"])):
            if names:
                raise ValueError(f"the weights in {path} {what} {len(names)} tensors, such as {min(names)}")
        return model.in_precision(dtype or torch.float32)

    def in_precision(self, dtype: torch.dtype) -> "PartlyExact":
        """Round every parameter that is not ``exact``, in place."""
        for name, parameter in self.named_parameters():
            if not self.is_exact(name):
                parameter.data = parameter.data.to(dtype)
        return self

    def is_exact(self, name: str) -> bool:
        """Tell whether the parameter of this name stays in float32."""
        return not set(self.exact).isdisjoint(name.split("."))

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the parts that are not ``exact``."""
        return next(parameter.dtype for name, parameter in self.named_parameters() if not self.is_exact(name))


Pipeline = TypeVar("Pipeline", bound=DiffusionPipeline)


@dataclass(frozen=True)
class Placement:
    """Where and how the parts of a pipeline work.

    Attributes:
        device: Name of a torch device, or ``auto``.
        offload: Whether parts wait in main memory and come to the device one at a time.
        tiling: Whether large images are decoded in overlapping squares, see ``TiledDecoding``.
        channels_last: Memory layout of the image tokenizer's convolutions, the faster one on GPUs.

    Raises:
        ValueError: If torch cannot use the device.
    """

    device: str = "cpu"
    offload: bool = False
    tiling: bool = False
    channels_last: bool = False

    def __post_init__(self) -> None:
        """Refuse what is impossible before weights are read."""
        usable_device(self.device, "backbone.placement.device")

    def placed(self, pipeline: Pipeline) -> Pipeline:
        """Move the pipeline to its device, and return it."""
        device = usable_device(self.device, "backbone.placement.device")
        if self.tiling:
            pipeline.vae.enable_tiling()
        if self.channels_last:
            pipeline.vae.to(memory_format=torch.channels_last)
        if self.offload:
            pipeline.enable_model_cpu_offload(device=device)
        else:
            pipeline.to(device)
        return pipeline


def read_weights(path: Path) -> dict[str, Any]:
    """Read a ``.safetensors``, ``.pth``, ``.pt`` or ``.bin`` file, or a folder with an index and its shards.

    Raises:
        ValueError: If there is no such file, a shard is missing, or it cannot be read without running code.
    """
    if not path.exists():
        raise ValueError(f"there is no {path}; give a file of weights, or a folder with an index and its shards")
    if path.is_dir():
        return _read_shards(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        stored = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"{path} is damaged, cut short, or no file of weights; fetch it again ({reason})") from error
    if not isinstance(stored, dict):
        raise ValueError(f"{path} holds a {type(stored).__name__}; give a file of tensors by their names")
    return stored


def published_parts(**places: str | Path) -> dict[str, str]:
    """Hash the files of each part of a pipeline; those of a hub id are in the hub's cache, where it was loaded from."""
    found = {name: Path(place).expanduser() for name, place in places.items()}
    here = {name: path if path.exists() else Path(snapshot_download(str(places[name]), local_files_only=True))
            for name, path in found.items()}  # fmt: skip
    return {name: place_identity(path) for name, path in here.items()}


def _read_shards(folder: Path) -> dict[str, Any]:
    indices = sorted(folder.glob("*.index.json"))
    if not indices:
        raise ValueError(f"{folder} has no *.index.json that lists its shards; give the folder as it was published")
    index = read_json(indices[0], "a list of shards")
    listed = index.get("weight_map") if isinstance(index, dict) else None
    names = listed.values() if isinstance(listed, dict) else [None]
    if not listed or not all(isinstance(name, str) and name == Path(name).name != ".." for name in names):
        raise RefusedFileError(f"{indices[0]} is no list of shards: weight_map names files beside it")
    shards = sorted(set(names))
    return {name: tensor for shard in shards for name, tensor in read_weights(folder / shard).items()}


def filled(
    model: nn.Module, tensors: Mapping[str, Tensor], source: object, dtype: torch.dtype, exact: Sequence[str] = ()
) -> nn.Module:
    """Fill every parameter of a model that was made on the meta device.

    Args:
        model: Model without weights.
        tensors: Weights by our names.
        source: Where the weights come from, for messages.
        dtype: Precision of the weights.
        exact: Names of submodules and parameters that stay in float32.

    Raises:
        ValueError: If tensors are missing, left over or of another shape.
    """
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    faults = {
        "lacks": expected.keys() - tensors.keys(),
        "has, beside what is needed,": tensors.keys() - expected.keys(),
        "has in another shape": {name for name in expected.keys() & tensors if expected[name] != tensors[name].shape},
    }
    for what, names in faults.items():
        if names:
            listed = ", ".join(sorted(names)[:8]) + (", ..." if len(names) > 8 else "")
            raise ValueError(f"{source} {what} {len(names)} of {len(expected)} tensors: {listed}")
    kept = set(exact)
    weights = {name: t.to(dtype if kept.isdisjoint(name.split(".")) else torch.float32) for name, t in tensors.items()}
    model.load_state_dict(weights, assign=True)
    return model.eval()
