"""A page per run: metrics that differ by a number share a figure, and the file of these figures is beside it."""

from pathlib import Path
from typing import ClassVar

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger
from PIL import Image

from src.callbacks.run_report import RunReport, families, family_figure
from tests.callbacks.conftest import TinyData, TinyModule, tiny_trainer


class Levels(TinyModule):
    """Logs twelve numbers of one kind and two of another."""

    legend: ClassVar = {"g": "how strong each is"}

    def on_before_optimizer_step(self, optimizer: object) -> None:
        values = {f"g/{at:02d}": float(at) for at in range(12)} | {"weight/0": 1.0, "weight/1": 2.0}
        for logger in self.loggers:
            logger.log_metrics(values, step=self.global_step)


def trained(folder: Path, module: L.LightningModule) -> str:
    callbacks = [RunReport(str(folder)), LearningRateMonitor()]
    logger = CSVLogger(folder, name="logs")
    tiny_trainer(folder, 4, logger=logger, callbacks=callbacks).fit(module, TinyData())
    return (folder / "report.html").read_text(encoding="utf-8")


def test_a_family_of_metrics_is_one_figure_on_the_page_and_in_a_file(tmp_path: Path) -> None:
    page = trained(tmp_path, Levels())
    pictures = [part.split('"')[0] for part in page.split('alt="')[1:]]
    assert pictures == ["loss", "g", "weight", "learning rate"] and "<figcaption>g: how strong each is<" in page
    texts = ("Curves", 'alt="g"', "<summary>More curves", 'alt="weight"', "<summary>Learning rates", 'alt="learning')
    assert [page.index(text) for text in texts] == sorted(page.index(text) for text in texts)
    with Image.open(tmp_path / "curves.png") as image:
        width, height = image.size
    assert width > 2 * 700 and height < 2 * 450


def test_a_run_without_families_leaves_no_such_file(tmp_path: Path) -> None:
    assert 'alt="loss"' in trained(tmp_path, TinyModule())
    assert not (tmp_path / "curves.png").exists()


def test_curves_that_belong_together_share_a_figure() -> None:
    names = ["g/00", "g/11", "lr-AdamW/changes", "lr-AdamW/modifier", "train/loss", "val/loss", "val/clip_t"]
    found = families({name: ([0, 1], [0.0, 1.0]) for name in names})
    assert {family: list(lines) for family, lines in found.items()} == {
        "g": ["g/00", "g/11"], "learning rate": ["lr-AdamW/changes", "lr-AdamW/modifier"],
        "loss": ["train/loss", "val/loss"], "clip_t": ["val/clip_t"],
    }  # fmt: skip


def test_lines_go_from_dark_to_bright_in_the_order_of_their_numbers() -> None:
    def drawn(*values: float) -> np.ndarray:
        lines = {f"w{number}": ([0, 1], [value, value]) for number, value in zip((2, 10), values, strict=True)}
        image = np.asarray(family_figure("w", lines))[40:350, 90:560].astype(int)
        coloured = np.ptp(image, axis=2) > 60
        return image[coloured.any(1)][[0, -1]].sum(2).min(1)

    upper, lower = drawn(1.0, 0.0)
    assert upper < lower
    upper, lower = drawn(0.0, 1.0)
    assert upper > lower
