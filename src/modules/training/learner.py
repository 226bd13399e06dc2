"""What is trained, without a Trainer (``Learner``), and the one LightningModule that trains it (``LearnerModule``)."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import lightning as L
import torch
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from PIL import Image
from torch import Generator, Tensor, nn

from src.data.files import free_disk_or_raise
from src.data.request import Request
from src.modules.training.diffusion import step_generator

SCHEDULES = {"constant": "constant_with_warmup", "cosine": "cosine"}
OLD_IDENTITIES = ("latexblend", "llmdiff")
"""Where checkpoints of earlier versions name their experiment; the keys of their tensors lack ``learner.``."""


@dataclass(frozen=True)
class TrainingRecord:
    """How something was trained: what a product says of it beside the learner's own options.

    Attributes:
        steps: Steps of the optimiser so far.
        learning_rate: Peak rate.
        weight_decay: Decay of the groups that name none.
        rates: Peak rates of the groups that have one of their own.
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
    """What is trained, and the loss of each sample; it knows no Trainer.

    Its parameters and buffers are what a checkpoint holds. A frozen model that it uses is kept in a tuple, where
    ``nn.Module`` sees no submodule, so that it stays out of checkpoints and of DDP.

    Attributes:
        seed: Everything that is drawn depends on it.
        incidental: Names of constructor arguments that do not change what is learnt.
        validates_average: Whether ``validate`` sees the averaged weights, where there are any.
    """

    seed: int = 0
    incidental: ClassVar[tuple[str, ...]] = ()
    validates_average: ClassVar[bool] = True

    @property
    def device(self) -> torch.device:
        """Where the trained parameters are."""
        return next(self.parameters()).device

    def prepare(  # noqa: B027
        self, data: Any, device: torch.device, rank: int = 0, world_size: int = 1, num_steps: int = 0
    ) -> None:
        """Fill caches and bring frozen parts to their device, once, before the first step.

        Args:
            data: The data module.
            device: Where the training runs.
            rank: The number of this process.
            world_size: How many processes train together.
            num_steps: How long the training is, in steps of the optimiser.
        """

    def generators(self, batch: Any, rank: int, world_size: int) -> list[Generator]:
        """Randomness of a training batch, on the CPU: here one generator for all of it."""
        return [step_generator(self.seed, int(batch["step"]), rank)]

    def validation_generators(self, batch: Any, batch_idx: int) -> list[Generator]:
        """Randomness of a validation batch, which no training step has and which is the same every time."""
        return [step_generator(self.seed, batch_idx, rank=-1)]

    @abstractmethod
    def losses(self, batch: Any, generators: list[Generator]) -> dict[str, Tensor] | Tensor:
        """One number for each sample ``(B,)``; of several by name, the first is minimised, see ``reduce``.

        What is a mean over the batch already may be a scalar. A tensor alone is called ``loss``.
        """

    def reduce(self, losses: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """What is minimised, and what is logged as ``train/<name>``: here the first mean, and all means."""
        means = {name: each.mean() for name, each in losses.items()}
        return next(iter(means.values())), means

    def validate(self, batch: Any, generators: list[Generator]) -> dict[str, Tensor] | Tensor:
        """What is logged as ``val/<name>``: the mean of each tensor, weighted over batches by its length."""
        return self.losses(batch, generators)

    def validated(self) -> dict[str, float]:
        """What is logged as ``val/<name>`` once all validation batches have been seen."""
        return {}

    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups of the optimiser: ``name``, ``params`` and what differs, such as ``weight_decay``.

        Groups may share a name. The rate of a name comes from ``rates`` of ``LearnerModule``.
        """
        return [{"name": "all", "params": self.averaged()}]

    def averaged(self) -> list[nn.Parameter]:
        """Parameters that an average follows: here all that are trained."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def after_step(self) -> None:  # noqa: B027
        """Runs after each step of the optimiser, before anything is saved."""

    def installed(self) -> contextlib.AbstractContextManager[Any]:
        """A context for the backward pass, for what gradient checkpointing has to find again."""
        return contextlib.nullcontext()

    def curves(self) -> dict[str, float]:
        """Numbers worth a curve, logged as often as the loss."""
        return {}

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree with to be resumed; plain values."""
        return {}

    def sample(self, requests: Sequence[Request], steps: int) -> list[Image.Image]:
        """Draw requests with what has been learnt in so many steps.

        Raises:
            ValueError: If this learner draws nothing.
        """
        raise ValueError(f"{type(self).__name__} draws no images; leave callbacks.samples out")

    @abstractmethod
    def export(self, record: TrainingRecord) -> dict[str, str]:
        """Write the product; what was made and where, in words for the user."""


class LearnerModule(L.LightningModule):
    """Trains a learner: generators, logging, optimiser, schedule, averaged weights and checkpoints, once for all.

    Args:
        learner: What is trained.
        optimizer: The optimiser, for parameter groups to be given: ``_partial_: true`` in a configuration. Its ``lr``
            is the peak rate.
        rates: Peak rates by the name of a parameter group, for groups whose rate is not the optimiser's.
        schedule: After the warm-up: ``constant``, or ``cosine`` decay over ``max_steps``.
        num_warmup_steps: Steps of linear warm-up.
        warmup_share: Largest share of all steps that the warm-up may take; None for any.
        ema_decay: Decay of an average of the weights, which is then validated, drawn with and exported; None for none.

    Raises:
        ValueError: If there is no such schedule, or ``rates`` names no parameter group.
    """

    def __init__(
        self,
        learner: Learner,
        optimizer: Callable[[Iterable[Any]], torch.optim.Optimizer],
        rates: Mapping[str, float] | None = None,
        schedule: str = "constant",
        num_warmup_steps: int = 0,
        warmup_share: float | None = None,
        ema_decay: float | None = None,
    ) -> None:
        super().__init__()
        if schedule not in SCHEDULES:
            raise ValueError(f"method.schedule is {schedule!r}; choose one of {', '.join(SCHEDULES)}")
        self.learner, self.optimizer, self.rates = learner, optimizer, dict(rates or {})
        self.schedule, self.num_warmup_steps, self.warmup_share = schedule, num_warmup_steps, warmup_share
        self.ema_decay = ema_decay
        self._groups()
        self.averaged = learner.averaged()
        self.ema = None if ema_decay is None else EMAModel(self.averaged, decay=ema_decay)
        # What loggers are told; no object may get into a checkpoint.
        self.save_hyperparameters({name: value for name, value in asdict(self.record()).items() if name != "steps"})

    def record(self) -> TrainingRecord:
        """How the learner has been trained so far."""
        # The optimiser's own defaults, whatever the configuration leaves out.
        defaults = self.optimizer([nn.Parameter(torch.zeros(1))]).defaults
        steps = self.global_step if self._trainer else 0
        settings = (self.rates, self.schedule, self.num_warmup_steps, self.ema_decay)
        return TrainingRecord(steps, defaults["lr"], defaults["weight_decay"], *settings)

    def setup(self, stage: str) -> None:
        """Make sure that the disk has room for checkpoints, and let the learner prepare.

        Raises:
            ValueError: If it has not, or the learner cannot work with this data.
        """
        trainer: Any = self.trainer
        # Two checkpoints, in float32: the weights, AdamW's two moments and the average.
        trained = sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)
        free_disk_or_raise(trainer.default_root_dir, 2 * (3 + (self.ema is not None)) * 4 * trained)
        where = (trainer.strategy.root_device, trainer.global_rank, trainer.world_size)
        self.learner.prepare(trainer.datamodule, *where, trainer.max_steps)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of this process's share of a global batch."""
        generators = self.learner.generators(batch, self.trainer.global_rank, self.trainer.world_size)
        loss, logged = self.learner.reduce(_named(self.learner.losses(batch, generators)))
        self.log_dict({f"train/{name}": value for name, value in logged.items()}, prog_bar=True, sync_dist=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """What the learner says of a validation batch, with the averaged weights."""
        generators = self.learner.validation_generators(batch, batch_idx)
        with self.averaged_weights() if self.learner.validates_average else contextlib.nullcontext():
            found = _named(self.learner.validate(batch, generators))
        for name, values in found.items():
            number = len(values) if values.ndim else 1
            self.log(f"val/{name}", values.mean(), batch_size=number, prog_bar=True, sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        """What the learner says of all validation batches together."""
        found = {f"val/{name}": value for name, value in self.learner.validated().items()}
        self.log_dict(found, prog_bar=True, sync_dist=True)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Inside the learner's context."""
        with self.learner.installed():
            super().backward(loss, *args, **kwargs)

    def configure_optimizers(self) -> Any:
        """The optimiser, and its schedule where rates change."""
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
        """Parameter groups with their rates. Their names stay here: they would change those of logged rates."""
        groups = self.learner.groups()
        names = [group["name"] for group in groups]
        for name in self.rates:
            if name not in names:
                known = ", ".join(dict.fromkeys(names))
                raise ValueError(f"method.rates names {name!r}, but the groups of parameters are {known}")
        rated = [{**group, **_rate(self.rates, group["name"])} for group in groups]
        return [{key: value for key, value in group.items() if key != "name"} for group in rated]

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Follow the weights at once: by ``on_train_batch_end`` the checkpoint of this step is already written."""
        super().optimizer_step(*args, **kwargs)
        self.learner.after_step()
        if self.ema is not None:
            self.ema.step(self.averaged)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the learner's curves as often as the loss."""
        if self.global_step % self.trainer.log_every_n_steps == 0 and (curves := self.learner.curves()):
            for logger in self.loggers:
                logger.log_metrics(curves, step=self.global_step)

    def on_fit_start(self) -> None:
        """Bring the averaged weights to the device."""
        if self.ema is not None:
            self.ema.to(self.device)

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """While active, parameters are their averages; afterwards they are bit for bit what they were."""
        if self.ema is None:
            yield
            return
        self.ema.store(self.averaged)
        try:
            self.ema.copy_to(self.averaged)
            yield
        finally:
            self.ema.restore(self.averaged)

    @torch.no_grad()
    def sample(self, requests: Sequence[Request]) -> list[Image.Image]:
        """Draw with what would be exported now."""
        with self.averaged_weights():
            return self.learner.sample(requests, self.global_step)

    @torch.no_grad()
    def export(self) -> dict[str, str]:
        """Write the product, of the averaged weights."""
        self.take_average()
        return self.learner.export(self.record())

    def take_average(self) -> None:
        """Replace the weights by their average, where there is one, for good."""
        if self.ema is not None:
            self.ema.copy_to(self.averaged)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Name the experiment, so that another one's checkpoint is refused, and keep the averaged weights."""
        checkpoint["identity"] = self.learner.identity()
        if self.ema is not None:
            checkpoint["ema"] = {"shadow": self.ema.shadow_params, "step": self.ema.optimization_step}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another experiment; restore the averaged weights.

        Raises:
            ValueError: If it is another's, or if a tensor is missing from it.
        """
        if "identity" not in checkpoint:
            _as_now(checkpoint)
        found, own = checkpoint["identity"], self.learner.identity()
        if found != own:
            raise ValueError(
                f"this checkpoint is of another experiment: it holds {found}, this run is {own}; resume with the "
                "configuration that wrote it, or start without resume=true"
            )
        missing = sorted(set(self.state_dict()) - set(checkpoint["state_dict"]))
        if missing:
            first = missing[0].removeprefix("learner.")
            raise ValueError(f"the checkpoint lacks {len(missing)} trained tensors, first {first}")
        if self.ema is not None:
            self.ema.shadow_params = checkpoint["ema"]["shadow"]
            self.ema.optimization_step = checkpoint["ema"]["step"]


def _as_now(checkpoint: dict[str, Any]) -> None:
    """Give a checkpoint from before ``LearnerModule`` today's names."""
    checkpoint["identity"] = next((checkpoint[name] for name in OLD_IDENTITIES if name in checkpoint), {})
    checkpoint["state_dict"] = {f"learner.{name}": tensor for name, tensor in checkpoint["state_dict"].items()}


def _named(losses: dict[str, Tensor] | Tensor) -> dict[str, Tensor]:
    return {"loss": losses} if isinstance(losses, Tensor) else losses


def _rate(rates: Mapping[str, float], name: str) -> dict[str, float]:
    return {"lr": rates[name]} if name in rates else {}
