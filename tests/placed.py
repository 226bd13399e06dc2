"""Data modules as a trainer places them among its processes, and what all of them together see."""

from types import SimpleNamespace

import lightning as L


def place(module: L.LightningDataModule, steps: int, first: int = 0, rank: int = 0, ranks: int = 1):
    """Tell a data module what a trainer would."""
    module.trainer = SimpleNamespace(
        max_steps=steps,
        global_step=first,
        accumulate_grad_batches=1,
        global_rank=rank,
        world_size=ranks,
        strategy=SimpleNamespace(barrier=lambda: None),
    )
    return module


def global_batches(modules: list) -> list[list[tuple[int, str]]]:
    """Position and caption of everything that the ranks see in each step, in the order of positions."""
    steps = zip(*(module.train_dataloader() for module in modules), strict=True)
    return [
        sorted((at, text) for part in step for at, text in zip(part["position"].tolist(), part["caption"], strict=True))
        for step in steps
    ]
