"""Parameter groups that learners share."""

from typing import Any

from torch import nn


def matrices_and_vectors(model: nn.Module) -> list[dict[str, Any]]:
    """Groups of a model in which gains and biases, which have one dimension or none, do not decay."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    return [{"name": "matrices", "params": matrices}, {"name": "vectors", "params": vectors, "weight_decay": 0.0}]
