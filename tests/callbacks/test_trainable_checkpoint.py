"""Frozen weights stay out of checkpoints; whatever else is in the module has to come back."""

from pathlib import Path

import pytest
import torch

from src.callbacks.trainable_checkpoint import TrainableCheckpoint
from tests.callbacks.conftest import TinyData, TinyModule, tiny_trainer


def fit(folder: Path, steps: int, checkpoint: Path | None = None, module: TinyModule | None = None):
    trainer, module = tiny_trainer(folder, steps, callbacks=[TrainableCheckpoint()]), module or TinyModule()
    trainer.fit(module, TinyData(), ckpt_path=checkpoint, weights_only=True)
    return trainer, module


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    trainer, _ = fit(tmp_path, 3)
    trainer.save_checkpoint(tmp_path / "three.ckpt")
    return tmp_path / "three.ckpt"


def test_it_holds_what_was_trained_and_the_optimizer(saved: Path) -> None:
    checkpoint = torch.load(saved, weights_only=True)
    assert set(checkpoint["state_dict"]) == {
        name for name in TinyModule().state_dict() if not name.startswith("frozen")
    }
    assert len(checkpoint["optimizer_states"][0]["state"]) == 4


def test_loading_restores_every_trained_tensor_and_the_optimizer(tmp_path: Path, saved: Path) -> None:
    checkpoint = torch.load(saved, weights_only=True)
    module = TinyModule()
    with torch.no_grad():
        module.trained.weight.fill_(5)
    trainer, module = fit(tmp_path, 3, saved, module)
    assert trainer.global_step == 3
    assert all(torch.equal(module.state_dict()[name], tensor) for name, tensor in checkpoint["state_dict"].items())
    assert torch.equal(module.frozen.weight, TinyModule().frozen.weight)
    moments = trainer.optimizers[0].state_dict()["state"]
    for index, state in checkpoint["optimizer_states"][0]["state"].items():
        assert torch.equal(moments[index]["exp_avg"], state["exp_avg"])


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda state: state.pop("trained.weight"), "1 trained tensors are missing .* first trained.weight"),
        (lambda state: state.pop("norm.running_mean"), "1 trained tensors are missing .* first norm.running_mean"),
        (lambda state: state.update(other=torch.ones(1)), "1 trained tensors of the checkpoint are unknown"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path: Path, saved: Path, damage, sentence: str) -> None:
    checkpoint = torch.load(saved, weights_only=True)
    damage(checkpoint["state_dict"])
    torch.save(checkpoint, tmp_path / "damaged.ckpt")
    with pytest.raises(ValueError, match=sentence):
        fit(tmp_path, 4, tmp_path / "damaged.ckpt")


def test_a_tensor_that_was_not_applied_is_noticed(tmp_path: Path, saved: Path) -> None:
    class Forgetful(TinyModule):
        def load_state_dict(self, state_dict, strict=True, assign=False):
            return super().load_state_dict({"trained.bias": state_dict["trained.bias"]}, strict=False)

    with pytest.raises(ValueError, match="trained tensors of the checkpoint were not applied"):
        fit(tmp_path, 4, saved, Forgetful())
