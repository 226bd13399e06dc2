"""Checkpoints as they were before ``LearnerModule``."""

from typing import Any


def as_before(checkpoint: dict[str, Any], method: str) -> dict[str, Any]:
    """The method's own LightningModule held the tensors and named the experiment by the method."""
    checkpoint[method] = checkpoint.pop("identity")
    tensors = checkpoint["state_dict"].items()
    return {**checkpoint, "state_dict": {name.removeprefix("learner."): tensor for name, tensor in tensors}}
