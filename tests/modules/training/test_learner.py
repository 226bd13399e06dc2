"""What LearnerModule does for every learner; whole trainings are with their methods."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from src.data.request import Request
from src.modules.training.learner import Learner, LearnerModule, TrainingRecord


class Line(Learner):
    """A slope and an offset, which has a rate of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.slope, self.offset = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1))

    def losses(self, batch: Any, generators: list[Generator]) -> Tensor:
        return (self.slope * batch + self.offset) ** 2

    def groups(self) -> list[dict[str, Any]]:
        return [{"name": "slope", "params": [self.slope]}, {"name": "offset", "params": [self.offset]}]

    def export(self, record: TrainingRecord) -> dict[str, str]:
        return {"learning rate": str(record.learning_rate), "slope": str(self.slope.item())}


ADAMW = partial(torch.optim.AdamW, lr=0.1)


def test_a_group_has_the_rate_of_its_name_or_the_optimisers() -> None:
    module = LearnerModule(Line(), ADAMW, {"offset": 0.5})
    module._trainer = SimpleNamespace(max_steps=10)  # type: ignore[assignment]
    assert [group["lr"] for group in module.configure_optimizers().param_groups] == [0.1, 0.5]
    with pytest.raises(ValueError, match="method.rates names 'ofset', but the groups of parameters are slope, offset"):
        LearnerModule(Line(), ADAMW, {"ofset": 0.5})


@pytest.mark.parametrize(("share", "second"), [(None, 0.01), (0.2, 0.05)])
def test_a_warm_up_takes_its_steps_or_its_share_of_all(share: float | None, second: float) -> None:
    module = LearnerModule(Line(), ADAMW, num_warmup_steps=10, warmup_share=share)
    module._trainer = SimpleNamespace(max_steps=10)  # type: ignore[assignment]
    configured = module.configure_optimizers()
    configured["optimizer"].step()
    configured["lr_scheduler"]["scheduler"].step()
    assert configured["optimizer"].param_groups[0]["lr"] == pytest.approx(second)


def test_the_export_is_of_the_averaged_weights_and_says_how_they_were_trained() -> None:
    module = LearnerModule(Line(), ADAMW, ema_decay=0.5)
    module.learner.slope.data.fill_(3.0)
    with module.averaged_weights():
        assert module.learner.slope.item() == 1
    assert module.learner.slope.item() == 3
    assert module.export() == {"learning rate": "0.1", "slope": "1.0"}


def test_loggers_and_checkpoints_are_told_plain_values() -> None:
    module = LearnerModule(Line(), ADAMW, {"offset": 0.5}, schedule="cosine")
    assert dict(module.hparams) == {
        **{"learning_rate": 0.1, "weight_decay": 0.01, "rates": {"offset": 0.5}},
        **{"schedule": "cosine", "num_warmup_steps": 0, "ema_decay": None},
    }


def test_a_learner_that_draws_nothing_says_so() -> None:
    with pytest.raises(ValueError, match="Line draws no images; leave callbacks.samples out"):
        LearnerModule(Line(), ADAMW).sample([Request("a dog", 0)])
