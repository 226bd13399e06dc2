"""Reference tensors: weights, inputs and intermediate results of the published code at tiny size (tests/golden).

Tolerances. Sums of float32 numbers depend on their order, which changes with the number of threads and the kind of
processor; the error is a share of the largest number in the tensor. Measured with one thread and two, with AVX-512,
with AVX2 and without either: logits and features differ from the reference by at most 19 units of rounding, images by
280. An image differs more because the decoder multiplies what reaches it: 1e-6 on a feature is 2.6e-5 in a pixel, and
the reference's own image is 3.2e-5 away from the same decoder in float64, ours 0.8e-5. Softmax amplifies too: what is
added to a logit multiplies a probability. A wrong formula differs by many thousands of units.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

FOLDER = Path(__file__).parents[2] / "golden"
EXACT, AMPLIFIED = 64, 1024
"""Units of rounding that features and logits, and images and probabilities, may differ by."""


def golden(case: str, file: str) -> dict[str, Tensor]:
    """All tensors of one file; half-precision ones, which are exact, in float32."""
    path = FOLDER / case / f"{file}.safetensors"
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in load_file(path).items()}


def close(ours: Tensor, theirs: Tensor, units: int = EXACT) -> None:
    """Compare up to rounding: ``units`` times 1.2e-7, float32's rounding, times the reference's largest number."""
    tolerance = units * torch.finfo(torch.float32).eps * float(theirs.abs().max())
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)
