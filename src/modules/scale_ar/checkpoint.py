"""Published weights into our classes: read without running code, every tensor accounted for."""

import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn


def read_weights(path: Path) -> dict[str, Any]:
    """What a ``.safetensors``, ``.pth``, ``.pt`` or ``.bin`` file holds, or a folder with an index and its shards.

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


def _read_shards(folder: Path) -> dict[str, Any]:
    indices = sorted(folder.glob("*.index.json"))
    if not indices:
        raise ValueError(f"{folder} has no *.index.json that lists its shards; give the folder as it was published")
    shards = sorted(set(json.loads(indices[0].read_text())["weight_map"].values()))
    return {name: tensor for shard in shards for name, tensor in read_weights(folder / shard).items()}


def filled(
    model: nn.Module, tensors: Mapping[str, Tensor], source: object, dtype: torch.dtype, exact: Sequence[str] = ()
) -> nn.Module:
    """Give a model from the meta device its weights, every one of them.

    Args:
        model: Without weights.
        tensors: By our names.
        source: For messages.
        dtype: Of the weights.
        exact: Submodules and parameters that stay in float32.

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
