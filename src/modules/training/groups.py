"""Parameter groups that learners share."""

from typing import Any

from torch import nn


def matrices_and_vectors(model: nn.Module) -> list[dict[str, Any]]:
    """Group a model's parameters so that those with at most one dimension, gains and biases, have no weight decay."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    return [{"name": "matrices", "params": matrices}, {"name": "vectors", "params": vectors, "weight_decay": 0.0}]
