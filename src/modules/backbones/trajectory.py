"""Record the path of denoising in a stock pipeline, or hold it on a path that is given."""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from src.data.request import Request
from src.data.trajectory import Trajectory
from src.modules.backbones.base import Backbone
from src.modules.generator import BatchedGenerator, Prepared

Steps = list[tuple[Tensor, Tensor, Tensor]]
"""Of each step: latents before, prediction, latents after, ``(B, C, h, w)`` each."""


@contextlib.contextmanager
def traced(pipeline: Any, along: Trajectory | None = None) -> Iterator[Steps]:
    """While active, the steps of the pipeline's latest call are in the list; afterwards its scheduler is as before.

    A method that draws twice, such as OMG, is known by its last drawing: where noise rises again, a call began.

    Args:
        pipeline: A stock pipeline.
        along: Where latents are put after each step, whatever was predicted; None lets them go their own way.
    """
    scheduler, steps, last = pipeline.scheduler, Steps(), [float("inf")]
    stock = scheduler.step

    # Pipelines look at the signature of ``step``.
    @functools.wraps(stock)
    def step(predicted: Tensor, timestep: Any, latents: Tensor, *others: Any, **named: Any) -> Any:
        now = float(timestep)
        if now > last[0]:
            steps.clear()
        last[0] = now
        after, *rest = stock(predicted, timestep, latents, *others, **named)
        if along is not None:
            after = along.latents[len(steps) + 1].to(after)
        steps.append((latents.float().cpu(), predicted.float().cpu(), after.float().cpu()))
        return (after, *rest)

    scheduler.step = step
    try:
        yield steps
    finally:
        del scheduler.step


class TracedGenerator(BatchedGenerator[Prepared]):
    """Draws with a backbone's stock pipeline, so that its path of denoising can be compared with that of others.

    Attributes:
        backbone: The stock model.
    """

    backbone: Backbone

    @torch.no_grad()
    def trajectory(self, requests: Sequence[Request], along: Trajectory | None = None) -> Trajectory:
        """Draw requests, and return the path instead of the images.

        Args:
            requests: B requests.
            along: Where latents are put after each step, such as where the plain model's were; None lets them go. The
                first latents depend on the seeds alone.

        Raises:
            ValueError: As in ``prepare``.
        """
        prepared = [self.prepare(request) for request in requests]
        parts, order = list[Trajectory](), list[int]()
        for places in self.batches(requests):
            with traced(self.backbone.pipeline, along.part(places) if along else None) as steps:
                self.draw([prepared[at] for at in places])
            before, predicted, after = (torch.stack(each) for each in zip(*steps, strict=True))
            parts.append(Trajectory(torch.cat([before, after[-1:]]), predicted))
            order += places
        return Trajectory.joined(parts, order)
