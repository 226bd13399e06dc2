"""Reference tensors: weights, inputs and intermediate results of the published code at tiny size."""

import os
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

FOLDER = Path(os.environ.get("ATELIER_GOLDEN", Path(__file__).parents[3] / "../shared/golden"))


def golden(case: str, file: str) -> dict[str, Tensor]:
    """All tensors of one file; half-precision ones, which are exact, in float32."""
    path = FOLDER / case / f"{file}.safetensors"
    if not path.exists():
        pytest.skip(f"reference tensors are absent: {path}; say where they are in ATELIER_GOLDEN")
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in load_file(path).items()}
