"""A training of LLMDiff at the smallest useful size; as a script, the rank of a training on two processes."""

import os
import sys
from functools import partial
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from src.callbacks.progress import Ranks
from src.data.order import Draw, StepBatchSampler, SteppedData
from src.modules.backbones.unet import UNetBackbone
from src.modules.llmdiff.encoder import LLMEncoder
from src.modules.llmdiff.language_model import LanguageModel
from src.modules.llmdiff.learner import LLMDiff
from src.modules.llmdiff.options import AdapterOptions
from src.modules.training.learner import LearnerModule
from tests.llms import WORDS
from tests.tiny import tiny_sd, tiny_sdxl

MAKERS = {"sd": tiny_sd, "sdxl": tiny_sdxl}


class Latents:
    """Random latents, each with a caption of a length of its own."""

    def __init__(self, number: int) -> None:
        self.latents = torch.randn(number, 4, 8, 8, generator=torch.Generator().manual_seed(number))
        self.captions = [" ".join(WORDS[i % len(WORDS)] for i in range(at, at + 2 + at % 5)) for at in range(number)]

    def __len__(self) -> int:
        return len(self.captions)

    def __getitems__(self, draws: list[Draw]) -> dict[str, Tensor | list[str]]:
        indices = [draw.index for draw in draws]
        return {
            "caption": [self.captions[index] for index in indices],
            "latents": self.latents[indices],
            "step": torch.tensor(draws[0].step),
            "position": torch.tensor([draw.position for draw in draws]),
        }


class LatentData(SteppedData):
    """Ten to train on, three to validate."""

    def __init__(self, batch_size: int = 2) -> None:
        super().__init__(batch_size, seed=5)
        self.train, self.val = Latents(10), Latents(3)  # type: ignore[assignment]

    def train_batches(self) -> StepBatchSampler:
        """As many as the optimiser's steps need."""
        trainer, parts = self.trainer, self.trainer.accumulate_grad_batches
        steps, first = parts * trainer.max_steps, parts * trainer.global_step
        return StepBatchSampler(10, self.batch_size, steps, self.seed, first, trainer.global_rank, trainer.world_size)


class Trace(L.Callback):
    """Losses over all processes, and the gradients of every step."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.gradients: list[dict[str, Tensor]] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, module: L.LightningModule, optimizer: object) -> None:
        self.gradients.append({n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None})

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *args: object) -> None:
        self.losses.append(float(trainer.callback_metrics["train/loss"]))


def training(
    folder: Path, llm: Path, kind: str = "sd", adapter: dict | None = None, schedule: str = "constant", **options
) -> LearnerModule:
    """Everything that may be random is on."""
    backbone = UNetBackbone(MAKERS[kind](folder), kind)
    encoder = LLMEncoder(LanguageModel.from_pretrained(str(llm)))
    path = str(folder / "adapter.safetensors")
    settings = {"caption_dropout": 0.3, "seed": 3, **options}
    module = LLMDiff(backbone, encoder, path, AdapterOptions(**(adapter or {})), **settings)
    optimizer = partial(torch.optim.AdamW, lr=1e-2, weight_decay=1e-2)
    return LearnerModule(module, optimizer, {"scalars": 1e-3}, schedule, ema_decay=0.5)


def trainer(steps: int, folder: Path, *callbacks: L.Callback, **options) -> L.Trainer:
    """Quiet, on the CPU."""
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    settings = {**quiet, "limit_val_batches": 0, "use_distributed_sampler": False, "accelerator": "cpu", "devices": 1}
    return L.Trainer(
        max_steps=steps, max_epochs=-1, default_root_dir=folder, callbacks=list(callbacks), **(settings | options)
    )


def traced(folder: Path, llm: Path, batch_size: int, **options) -> Trace:
    """Three steps."""
    trace = Trace()
    trainer(3, folder, trace, **options).fit(training(folder, llm), LatentData(batch_size))
    return trace


def on_two(folder: Path, llm: Path, settings: str, *callbacks: L.Callback) -> L.Trainer:
    """Train on two processes; the second is started with the same command."""
    strategy = DDPStrategy(process_group_backend="gloo")
    run = trainer(3, folder, *callbacks, Ranks(settings), devices=2, strategy=strategy)
    run.fit(training(folder, llm), LatentData(2))
    return run


def main(folder: Path, llm: Path) -> None:
    """Train; then again, but with another configuration on each rank. The first rank tells what came of it."""
    trace, error = Trace(), ""
    # The ranks must not write each other's tokenizers.
    own = folder / os.environ.get("LOCAL_RANK", "0")
    first = on_two(own, llm, "same", trace).is_global_zero
    try:
        on_two(own, llm, f"rank {os.environ['LOCAL_RANK']}")
    except ValueError as refused:
        error = str(refused)
    if first:
        torch.save({"losses": trace.losses, "gradients": trace.gradients, "error": error}, folder / "trace.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
