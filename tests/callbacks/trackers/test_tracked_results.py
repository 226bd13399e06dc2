import json
from pathlib import Path

import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from src.callbacks.trackers.loggers import log_results, means
from src.callbacks.trackers.wandb import SECONDS, WandbTracker
from src.eval.results.results import read_rows, write_rows
from tests.open_images import OpenImages

METRICS = {"overall": {"concept": {"dino": {"mean": 0.5, "low": 0.4, "high": 0.6}}, "gap": {"mean": None}}}


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (16, 16), (0, 0, 200)).save(tmp_path / "images" / "one.png")
    row = {"concept": "rex", "prompt": "a {}", "seed": 0, "file": "one.png", "dino": 0.5}
    Image.new("RGB", (8, 8)).save(tmp_path / "grid_rex.png")
    write_rows([row, row | {"file": "", "seed": 1}], tmp_path / "per_image")
    return tmp_path


def log(run_dir: Path, *loggers) -> None:
    log_results(loggers, METRICS, run_dir, run_dir / "images", {"rex": Image.new("RGB", (16, 16), (200, 0, 0))})


def test_means_keep_their_path_and_what_is_undefined_is_left_out() -> None:
    assert means(METRICS["overall"], "test") == {"test/concept/dino": 0.5}


def test_files_and_tensorboard_get_the_means(run_dir: Path) -> None:
    log(run_dir, CSVLogger(run_dir, name="logs"), TensorBoardLogger(run_dir, name="board"))
    assert "test/concept/dino" in next(run_dir.glob("logs/*/metrics.csv")).read_text(encoding="utf-8")
    events = EventAccumulator(str(next(run_dir.glob("board/*"))))
    events.Reload()
    assert events.Scalars("test/concept/dino")[0].value == 0.5


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", *SECONDS):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")


@pytest.mark.usefixtures("offline")
def test_a_table_of_many_images_holds_few_of_them(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (row, *_) = read_rows(run_dir / "per_image")
    for seed in range(40):
        Image.new("RGB", (16, 16), (seed, 0, 0)).save(run_dir / "images" / f"{seed}.png")
    write_rows([row | {"seed": seed, "file": f"{seed}.png"} for seed in range(40)], run_dir / "per_image")
    images = OpenImages(monkeypatch)
    log(run_dir, WandbTracker(str(run_dir), name="suite", group="base_flow", job_type="eval"))
    (table,) = (run_dir / "wandb").rglob("samples*.table.json")
    assert len(json.loads(table.read_text(encoding="utf-8"))["data"]) == 40
    assert images.most < 10


@pytest.mark.usefixtures("offline")
def test_wandb_gets_a_row_per_image_with_its_reference(run_dir: Path) -> None:
    log(run_dir, WandbTracker(str(run_dir), name="suite", group="base_flow", job_type="eval"))
    (table,) = (run_dir / "wandb").rglob("samples*.table.json")
    assert '"dino"' in table.read_text(encoding="utf-8") and '"reference"' in table.read_text(encoding="utf-8")
    staged = [path for path in (run_dir / "wandb" / "data").rglob("*") if path.is_file()]
    pictures = [path for path in staged if path.read_bytes().startswith(b"\x89PNG")]
    assert {Image.open(path).getpixel((0, 0)) for path in pictures} == {(0, 0, 200), (200, 0, 0)}
    (grid,) = (run_dir / "wandb").rglob("grid_rex*.png")
    assert Image.open(grid).size == (8, 8)
