"""Checkpoints without frozen weights, for any LightningModule."""

from typing import Any

import lightning as L
import torch
from torch import Tensor


class TrainableCheckpoint(L.Callback):
    """Leaves frozen parameters out of every checkpoint, and makes sure that a loaded one fills all the others.

    It works beside whatever writes checkpoints. Buffers stay in: they may change without a gradient, as those of batch
    norm do. Frozen parameters must be the same when the training goes on, since their values come from the module's
    constructor. Checkpoints with ``save_weights_only=True`` call no callback, so they stay complete.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Allow a state without frozen weights; what has to be in it is checked after loading."""
        pl_module.strict_loading = False

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Drop frozen parameters."""
        frozen = frozen_names(pl_module)
        checkpoint["state_dict"] = {
            name: tensor for name, tensor in checkpoint["state_dict"].items() if name not in frozen
        }

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Compare the module, which is loaded by now, with the checkpoint.

        Raises:
            ValueError: If a trained tensor is missing from the checkpoint, unknown to the module, or was not applied.
        """
        saved, state = checkpoint["state_dict"], pl_module.state_dict()
        _refuse(sorted(state.keys() - frozen_names(pl_module) - saved.keys()), "are missing from the checkpoint")
        _refuse(sorted(saved.keys() - state.keys()), "of the checkpoint are unknown to the module")
        _refuse([name for name in saved if not _equal(saved[name], state[name])], "of the checkpoint were not applied")


def frozen_names(module: L.LightningModule) -> set[str]:
    """Parameters that take no gradient, under every name that they have in the state."""
    named = module.named_parameters(remove_duplicate=False)
    return {name for name, parameter in named if not parameter.requires_grad}


def _refuse(wrong: list[str], what: str) -> None:
    if wrong:
        raise ValueError(
            f"{len(wrong)} trained tensors {what}, first {wrong[0]}; "
            "resume with the configuration that wrote the checkpoint, or start without resume=true"
        )


def _equal(saved: Tensor, applied: Tensor) -> bool:
    return torch.equal(saved.to(applied), applied)
