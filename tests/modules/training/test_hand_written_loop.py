"""A whole training of two numbers against the same loop written by hand: AdamW, rates, accumulation, average."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Generator, Tensor, nn
from torch.utils.data import DataLoader

from src.modules.training.learner import Learner, LearnerModule, TrainingRecord

STEPS, WARM_UP, CLIP, WEIGHT_DECAY = 6, 3, 0.7, 0.2
RATES = (0.05, 0.2)
"""Of slope and offset."""


class Line(Learner):
    """The error of ``slope x + offset`` as a prediction of y; the offset has a rate of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.slope, self.offset = nn.Parameter(torch.tensor([2.0])), nn.Parameter(torch.tensor([-1.0]))

    def losses(self, batch: Any, generators: list[Generator]) -> Tensor:
        return (self.slope * batch["x"] + self.offset - batch["y"]) ** 2

    def groups(self) -> list[dict[str, Any]]:
        return [{"name": "slope", "params": [self.slope]}, {"name": "offset", "params": [self.offset]}]

    def export(self, record: TrainingRecord) -> dict[str, str]:
        return {}


class Trace(L.Callback):
    """Weights, averages and the rates that were used, after each step of the optimiser."""

    def __init__(self) -> None:
        self.steps: list[list[float]] = []
        self.rates: list[float] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, module: Any, optimizer: torch.optim.Optimizer) -> None:
        self.rates = [group["lr"] for group in optimizer.param_groups]

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, *args: Any) -> None:
        if trainer.global_step > len(self.steps):
            weights = [module.learner.slope.item(), module.learner.offset.item()]
            averages = [one.item() for one in module.ema.shadow_params] if module.ema else []
            self.steps.append([*weights, *averages, *self.rates])


def batches(accumulate: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {"x": torch.randn(3, generator=generator), "y": torch.randn(3, generator=generator), "step": torch.tensor(step)}
        for step in range(STEPS * accumulate)
    ]


def by_hand(accumulate: int, schedule: str, warm_up: int, decay: float | None) -> list[list[float]]:
    """``w <- w - lr (wd w + m / (sqrt(v) + e))``, gradients clipped to a norm, ``a <- d a + (1 - d) w``."""
    weights, moments, squares, averages = [2.0, -1.0], [0.0, 0.0], [0.0, 0.0], [2.0, -1.0]
    data, trace = batches(accumulate), []
    for step in range(STEPS):
        slopes = [0.0, 0.0]
        for batch in data[step * accumulate : (step + 1) * accumulate]:
            x, y = batch["x"].tolist(), batch["y"].tolist()
            errors = [weights[0] * one + weights[1] - other for one, other in zip(x, y, strict=True)]
            slopes[0] += sum(2 * error * one for error, one in zip(errors, x, strict=True)) / 3 / accumulate
            slopes[1] += sum(2 * error for error in errors) / 3 / accumulate
        shrunk = min(1.0, CLIP / (math.hypot(*slopes) + 1e-6))
        share = min(1.0, step / warm_up) if warm_up else 1.0
        if schedule == "cosine" and step >= warm_up:
            share = (1 + math.cos(math.pi * (step - warm_up) / (STEPS - warm_up))) / 2
        for at, rate in enumerate(RATES):
            slope = shrunk * slopes[at]
            moments[at] = 0.9 * moments[at] + 0.1 * slope
            squares[at] = 0.999 * squares[at] + 0.001 * slope**2
            size = math.sqrt(squares[at] / (1 - 0.999 ** (step + 1))) + 1e-8
            change = WEIGHT_DECAY * weights[at] + moments[at] / (1 - 0.9 ** (step + 1)) / size
            weights[at] -= share * rate * change
        # The average begins at the weights after the first step, and forgets faster at first.
        kept = 0.0 if step == 0 else min(decay or 0.0, (1 + step) / (10 + step))
        averages = [kept * old + (1 - kept) * new for old, new in zip(averages, weights, strict=True)]
        trace.append([*weights, *(averages if decay else []), *(share * rate for rate in RATES)])
    return trace


@pytest.mark.parametrize("decay", [None, 0.3, 0.999])
@pytest.mark.parametrize(("schedule", "warm_up"), [("constant", 0), ("constant", WARM_UP), ("cosine", WARM_UP)])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_every_step_is_that_of_the_loop(
    tmp_path: Path, accumulate: int, schedule: str, warm_up: int, decay: float | None
) -> None:
    adamw = partial(torch.optim.AdamW, lr=RATES[0], weight_decay=WEIGHT_DECAY)
    module = LearnerModule(Line(), adamw, {"offset": RATES[1]}, schedule, warm_up, ema_decay=decay)
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    trace = Trace()
    trainer = L.Trainer(
        max_steps=STEPS,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=CLIP,
        accelerator="cpu",
        default_root_dir=tmp_path,
        callbacks=[trace],
        **quiet,
    )
    trainer.fit(module, DataLoader(batches(accumulate), batch_size=None))
    expected = by_hand(accumulate, schedule, warm_up, decay)
    assert len(trace.steps) == STEPS
    for found, step in zip(trace.steps, expected, strict=True):
        assert found == pytest.approx(step, rel=1e-4, abs=1e-6)
