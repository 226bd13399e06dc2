"""``Learner`` is what is trained and knows no Trainer; ``LearnerModule`` is the one LightningModule that trains it."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import torch
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from PIL import Image
from torch import Generator, Tensor, nn

from src.data.files import free_disk_or_raise
from src.data.ranges import BelowOne, Number, Share, Weight
from src.data.request import Request
from src.modules.training.diffusion import step_generator
from src.modules.training.finite import FiniteModule, refuse_infinite

SCHEDULES = {"constant": "constant_with_warmup", "cosine": "cosine"}


@dataclass(frozen=True)
class TrainingRecord:
    """How something was trained, as its product records it beside the learner's own options.

    Attributes:
        steps: Steps of the optimiser so far.
        learning_rate: Peak learning rate.
        weight_decay: Weight decay of the groups that have none of their own.
        rates: Peak learning rates of the groups that have one of their own.
        schedule: ``constant`` or ``cosine``.
        num_warmup_steps: Steps of linear warm-up.
        ema_decay: Decay of the averaged weights; None without an average.
    """

    steps: int
    learning_rate: float
    weight_decay: float
    rates: Mapping[str, float] = field(default_factory=dict)
    schedule: str = "constant"
    num_warmup_steps: int = 0
    ema_decay: float | None = None


class Learner(nn.Module, ABC):
    """Parameters to train, and the loss of each sample, without a Trainer.

    A checkpoint holds its parameters and buffers. A subclass keeps a frozen model in a tuple, where ``nn.Module`` finds
    no submodule, so that the model stays out of checkpoints and of DDP.

    Attributes:
        seed: Seed of all random draws.
        incidental: Names of constructor arguments that do not change what is learnt.
        validates_average: Whether ``validate`` uses the averaged weights, if there are any.
        legend: What curves of its own are, by what their names begin with.
    """

    seed: int = 0
    incidental: ClassVar[tuple[str, ...]] = ()
    validates_average: ClassVar[bool] = True
    legend: ClassVar[Mapping[str, str]] = {}

    @property
    def device(self) -> torch.device:
        """Where the trained parameters are."""
        return next(self.parameters()).device

    def prepare(  # noqa: B027
        self, data: Any, device: torch.device, rank: int = 0, world_size: int = 1, num_steps: int = 0
    ) -> None:
        """Fill caches and move frozen parts to their device, once, before the first step.

        Args:
            data: The data module.
            device: Device that the training runs on.
            rank: Number of this process.
            world_size: Number of processes that train together.
            num_steps: Length of the training in steps of the optimiser.
        """

    def generators(self, batch: Any, rank: int, world_size: int) -> list[Generator]:
        """Make the CPU generators of a training batch: here one for all of it."""
        return [step_generator(self.seed, int(batch["step"]), rank)]

    def validation_generators(self, batch: Any, batch_idx: int) -> list[Generator]:
        """Make the CPU generators of a validation batch: the same in every validation, and in no training step."""
        return [step_generator(self.seed, batch_idx, rank=-1)]

    @abstractmethod
    def losses(self, batch: Any, generators: list[Generator]) -> dict[str, Tensor] | Tensor:
        """Compute one loss, or several by name, for each sample ``(B,)``; ``reduce`` says which is minimised.

        A loss that is a mean over the batch already may be a scalar. A single tensor is called ``loss``.
        """

    def reduce(self, losses: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what is minimised, here the first mean, and what is logged as ``train/<name>``, here all means."""
        means = {name: each.mean() for name, each in losses.items()}
        return next(iter(means.values())), means

    def validate(self, batch: Any, generators: list[Generator]) -> dict[str, Tensor] | Tensor:
        """Compute what is logged as ``val/<name>``: the mean of each tensor, weighted over batches by its length."""
        return self.losses(batch, generators)

    def validated(self) -> dict[str, float]:
        """Return what is logged as ``val/<name>`` after all validation batches."""
        return {}

    def groups(self) -> list[dict[str, Any]]:
        """Return the optimiser's parameter groups: ``name``, ``params`` and other settings, such as ``weight_decay``.

        Groups may share a name, by which ``rates`` of ``LearnerModule`` gives them a learning rate.
        """
        return [{"name": "all", "params": self.averaged_parameters()}]

    def averaged_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that are averaged: here all that are trained."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def after_step(self) -> None:  # noqa: B027
        """Run after each step of the optimiser, before anything is saved."""

    def installed(self) -> contextlib.AbstractContextManager[Any]:
        """Return a context for the backward pass, in which gradient checkpointing runs parts of the model again."""
        return contextlib.nullcontext()

    def curves(self) -> dict[str, float]:
        """Return further numbers to log as often as the loss."""
        return {}

    def sample(self, requests: Sequence[Request], steps: int) -> list[Image.Image]:
        """Draw requests with what has been learnt after so many steps.

        Raises:
            ValueError: If this learner draws nothing.
        """
        raise ValueError(f"{type(self).__name__} draws no images; leave callbacks.samples out")

    @abstractmethod
    def export(self, record: TrainingRecord) -> dict[str, str]:
        """Write the product, and return what was made and where, in words for the user."""


class LearnerModule(FiniteModule):
    """Trains any learner: generators, logging, optimiser, schedule, averaged weights and checkpoints.

    Args:
        learner: The learner that is trained.
        optimizer: Makes the optimiser from parameter groups (``_partial_: true`` in a configuration); its ``lr`` is the
            peak learning rate.
        rates: Name of a parameter group to its peak learning rate, for groups that differ from the optimiser's.
        schedule: Learning rate after the warm-up: ``constant``, or ``cosine`` decay over ``max_steps``.
        num_warmup_steps: Steps of linear warm-up.
        warmup_share: Largest share of all steps that the warm-up may take; None for any.
        ema_decay: Decay of an average of the weights, which is validated, drawn with and exported; None for no average.

    Raises:
        ValueError: If there is no such schedule, or ``rates`` names no parameter group.
    """

    def __init__(
        self,
        learner: Learner,
        optimizer: Callable[[Iterable[Any]], torch.optim.Optimizer],
        rates: Mapping[str, Weight] | None = None,
        schedule: str = "constant",
        num_warmup_steps: Number = 0,
        warmup_share: Share | None = None,
        ema_decay: BelowOne | None = None,
    ) -> None:
        super().__init__()
        if schedule not in SCHEDULES:
            raise ValueError(f"method.schedule is {schedule!r}; choose one of {', '.join(SCHEDULES)}")
        self.learner, self.optimizer, self.rates = learner, optimizer, dict(rates or {})
        self.schedule, self.num_warmup_steps, self.warmup_share = schedule, num_warmup_steps, warmup_share
        self.ema_decay = ema_decay
        self._groups()
        self.averaged_parameters = learner.averaged_parameters()
        self.ema = None if ema_decay is None else EMAModel(self.averaged_parameters, decay=ema_decay)
        # Loggers and checkpoints get these plain values, and no objects.
        self.save_hyperparameters({name: value for name, value in asdict(self.record()).items() if name != "steps"})

    def record(self) -> TrainingRecord:
        """Record how the learner has been trained so far."""
        # An optimiser that is never used tells the values that the configuration leaves out.
        defaults = self.optimizer([nn.Parameter(torch.zeros(1))]).defaults
        steps = self.global_step if self._trainer else 0
        settings = (self.rates, self.schedule, self.num_warmup_steps, self.ema_decay)
        return TrainingRecord(steps, defaults["lr"], defaults["weight_decay"], *settings)

    def setup(self, stage: str) -> None:
        """Make sure that the disk has room for checkpoints, and let the learner prepare.

        Raises:
            ValueError: If there is no room, or the learner cannot work with this data.
        """
        trainer: Any = self.trainer
        # Two checkpoints in float32, each with the weights, AdamW's two moments and the average.
        trained = sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)
        free_disk_or_raise(trainer.default_root_dir, 2 * (3 + (self.ema is not None)) * 4 * trained)
        where = (trainer.strategy.root_device, trainer.global_rank, trainer.world_size)
        self.learner.prepare(trainer.datamodule, *where, trainer.max_steps)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Compute and log the loss of this process's share of a global batch."""
        generators = self.learner.generators(batch, self.trainer.global_rank, self.trainer.world_size)
        loss, logged = self.learner.reduce(_named(self.learner.losses(batch, generators)))
        self.log_dict({f"train/{name}": value for name, value in logged.items()}, prog_bar=True, sync_dist=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log the learner's validation of a batch, with the averaged weights."""
        generators = self.learner.validation_generators(batch, batch_idx)
        with self.averaged_weights() if self.learner.validates_average else contextlib.nullcontext():
            found = _named(self.learner.validate(batch, generators))
        for name, values in found.items():
            number = len(values) if values.ndim else 1
            self.log(f"val/{name}", values.mean(), batch_size=number, prog_bar=True, sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        """Log the learner's validation of all batches together."""
        found = {f"val/{name}": value for name, value in self.learner.validated().items()}
        self.log_dict(found, prog_bar=True, sync_dist=True)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Run the backward pass inside the learner's context."""
        with self.learner.installed():
            super().backward(loss, *args, **kwargs)

    def configure_optimizers(self) -> Any:
        """Make the optimiser, and a schedule if learning rates change."""
        optimizer = self.optimizer(self._groups())
        num_steps, num_warmup_steps = self.trainer.max_steps, self.num_warmup_steps
        if self.warmup_share is not None:
            num_warmup_steps = min(num_warmup_steps, int(self.warmup_share * num_steps))
        if self.schedule == "constant" and not num_warmup_steps:
            return optimizer
        schedule = get_scheduler(
            SCHEDULES[self.schedule], optimizer, num_warmup_steps=num_warmup_steps, num_training_steps=num_steps
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _groups(self) -> list[dict[str, Any]]:
        """Return parameter groups with their rates; each is logged by its name, which is its own."""
        groups = self.learner.groups()
        names = [group["name"] for group in groups]
        for name in self.rates:
            if name not in names:
                known = ", ".join(dict.fromkeys(names))
                raise ValueError(f"method.rates names {name!r}, but the groups of parameters are {known}")
        rates = [{"lr": self.rates[name]} if name in self.rates else {} for name in names]
        rated = [{**group, **rate} for group, rate in zip(groups, rates, strict=True)]
        before = [names[:at].count(name) for at, name in enumerate(names)]
        told = [f"{name} {number + 1}" if number else name for name, number in zip(names, before, strict=True)]
        return [{**group, "name": name} for group, name in zip(rated, told, strict=True)]

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, and update the average at once: ``on_train_batch_end`` comes after the checkpoint of this step."""
        super().optimizer_step(*args, **kwargs)
        self.learner.after_step()
        if self.ema is not None:
            self.ema.step(self.averaged_parameters)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Look at the gradients, and log the learner's curves as often as the loss."""
        super().on_before_optimizer_step(optimizer)
        if self.global_step % self.trainer.log_every_n_steps == 0 and (curves := self.learner.curves()):
            for logger in self.loggers:
                logger.log_metrics(curves, step=self.global_step)

    def on_fit_start(self) -> None:
        """Move the averaged weights to the device."""
        if self.ema is not None:
            self.ema.to(self.device)

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """While active, replace parameters by their averages; afterwards they are bit for bit what they were."""
        if self.ema is None:
            yield
            return
        self.ema.store(self.averaged_parameters)
        try:
            self.ema.copy_to(self.averaged_parameters)
            yield
        finally:
            self.ema.restore(self.averaged_parameters)

    @torch.no_grad()
    def sample(self, requests: Sequence[Request]) -> list[Image.Image]:
        """Draw with the weights that would be exported now."""
        with self.averaged_weights(), self.stopping():
            return self.learner.sample(requests, self.global_step)

    @torch.no_grad()
    def export(self) -> dict[str, str]:
        """Write the product, from the averaged weights; those that are not finite raise a ``ValueError``."""
        self.take_average()
        refuse_infinite(self.state_dict(), "exported")
        return self.learner.export(self.record())

    def take_average(self) -> None:
        """Replace the weights by their average for good, if there is one."""
        if self.ema is not None:
            self.ema.copy_to(self.averaged_parameters)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Look at the weights, and store the averaged ones."""
        super().on_save_checkpoint(checkpoint)
        if self.ema is not None:
            checkpoint["ema"] = {"shadow": self.ema.shadow_params, "step": self.ema.optimization_step}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the averaged weights.

        Raises:
            ValueError: If the checkpoint lacks a tensor, or holds one that is not finite.
        """
        missing = sorted(set(self.state_dict()) - set(checkpoint["state_dict"]))
        if missing:
            first = missing[0].removeprefix("learner.")
            raise ValueError(f"the checkpoint lacks {len(missing)} trained tensors, first {first}")
        refuse_infinite(checkpoint["state_dict"], "resumed")
        if self.ema is not None:
            self.ema.shadow_params = checkpoint["ema"]["shadow"]
            self.ema.optimization_step = checkpoint["ema"]["step"]


def _named(losses: dict[str, Tensor] | Tensor) -> dict[str, Tensor]:
    return {"loss": losses} if isinstance(losses, Tensor) else losses
