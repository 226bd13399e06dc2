"""A training of a few numbers, and what callbacks ask of its module and its data."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from src.data.request import Request


class TinyModule(L.LightningModule):
    """A trained layer on a frozen one, with dropout, so that the loss trace follows torch's random state."""

    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters()
        torch.manual_seed(0)
        self.frozen = nn.Linear(4, 100).requires_grad_(False)
        self.norm, self.trained = nn.BatchNorm1d(100), nn.Linear(100, 1)
        self.losses: list[float] = []
        self.export_path = Path("never written")

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        hidden = nn.functional.dropout(self.norm(self.frozen(batch["inputs"])))
        loss = self.trained(hidden).square().mean()
        self.losses.append(loss.item())
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=0.1)

    def sample(self, requests: Sequence[Request]) -> list[Image.Image]:
        """One colour per seed; it grows brighter with every step. It also draws from the global random state."""
        torch.rand(1)
        return [Image.new("RGB", (8, 8), (10 * request.seed, 20 * self.global_step, 0)) for request in requests]

    def export(self) -> dict[str, str]:
        self.export_path.write_bytes(b"rows")
        return {"concept bank": str(self.export_path), "next": "python generate.py " + 300 * "x"}


class TinyData(L.LightningDataModule):
    """Numbers to learn from, and one photo."""

    photos = [Image.new("RGB", (8, 8), (255, 0, 0))]

    def train_dataloader(self) -> DataLoader:
        rows = [{"inputs": torch.full((4,), float(index)), "step": torch.tensor(0)} for index in range(40)]
        return DataLoader(rows, batch_size=2)


class Colours:
    """Red and green of an image, as a unit vector; the only text that it knows, a dog, is red."""

    def encode_images(self, images: Sequence) -> Tensor:
        pixels = torch.tensor([image.getpixel((0, 0))[:2] for image in images], dtype=torch.float32)
        return torch.nn.functional.normalize(pixels + 1, dim=-1)

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        assert set(texts) <= {"a dog"}
        return torch.tensor([[1.0, 0.0]]).expand(len(texts), 2)


def tiny_trainer(folder: Path, steps: int, **options: Any) -> L.Trainer:
    settings = {"logger": False, "enable_checkpointing": False, "log_every_n_steps": 1}
    return L.Trainer(
        accelerator="cpu", max_steps=steps, default_root_dir=folder, enable_progress_bar=False,
        enable_model_summary=False, **(settings | options),
    )  # fmt: skip


def assert_training_is_left_alone(callback: L.Callback, folder: Path) -> None:
    """Six steps with it leave the losses and the random state of six steps without it."""
    traces = []
    for callbacks in ([], [callback]):
        torch.manual_seed(3)
        module = TinyModule()
        tiny_trainer(folder, 6, callbacks=callbacks).fit(module, TinyData())
        traces.append((module.losses, torch.get_rng_state()))
    assert traces[0][0] == traces[1][0]
    assert torch.equal(traces[0][1], traces[1][1])


@pytest.fixture(autouse=True)
def _seed() -> None:
    L.seed_everything(1, verbose=False)
