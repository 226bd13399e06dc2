"""A process that is killed loses at most what it did since its last checkpoint, or the image it was drawing."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from src.callbacks.run_report import read_curves
from tests.tiny import tiny_sd

ROOT = Path(__file__).parents[1]
TRAIN = [
    "data.num_class_images=2",
    "data.num_views=4",
    "data.batch_size=1",
    "~callbacks.samples",
    "trainer.max_steps=60",
]


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    tiny_sd(tmp_path).save_pretrained(tmp_path / "sd")
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    (tmp_path / "photos").mkdir()
    Image.fromarray(pixels).save(tmp_path / "photos" / "0.png")
    return tmp_path / "sd"


def command(script: str, folder: Path, *arguments: str) -> list[str]:
    paths = [f"paths.root={folder}/outputs", f"paths.cache_dir={folder}/cache", f"backbone.path={folder}/sd"]
    return [sys.executable, script, *paths, *arguments]


def stopped_once(arguments: list[str], ready, number: int = signal.SIGKILL) -> None:
    """Start, wait until ``ready()``, and kill without warning, or with one."""
    process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not ready() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.poll() is None, "the process ended before it could be killed"
    os.kill(process.pid, number)
    process.wait()


def saved(root: Path) -> list[Path]:
    """Checkpoints of runs of one name."""
    return list(root.glob("*/checkpoints/last.ckpt"))


def logged(run: Path) -> dict:
    """What a run has logged, without what the clock and the machine decide."""
    curves = read_curves(sorted(run.glob("logs/version_*/metrics.csv")))
    return {name: curve for name, curve in curves.items() if not name.startswith("perf/")}


def test_training_goes_on_where_it_was_killed_or_interrupted(pipeline: Path) -> None:
    folder = pipeline.parent
    often = ["callbacks.checkpoint.every_n_train_steps=20", "++trainer.log_every_n_steps=1"]
    options = [f"data.instance_dir={folder}/photos", *TRAIN, *often]
    train = command("train.py", folder, "+experiment=concept_dog", *options)
    subprocess.run([*train, "name=whole"], cwd=ROOT, check=True, capture_output=True)
    whole = next(folder.glob("outputs/train/whole/*"))
    for name, number in (("killed", signal.SIGKILL), ("interrupted", signal.SIGINT)):
        stopped_once([*train, f"name={name}"], partial(saved, folder / "outputs" / "train" / name), number)
        run = next(folder.glob(f"outputs/train/{name}/*"))
        assert not list(run.glob("exports/*"))
        (first,) = run.glob("logs/version_*/metrics.csv")
        steps, _ = read_curves([first])["train/loss"]
        assert steps == list(range(len(steps))) and len(steps) >= 20
        subprocess.run([*train, f"name={name}", "resume=true"], cwd=ROOT, check=True, capture_output=True)
        assert logged(run) == logged(whole)
        ours, theirs = (load_file(each / "exports" / "rex.safetensors") for each in (run, whole))
        assert all((ours[key] == theirs[key]).all() for key in theirs)
        assert len(list(run.glob("logs/version_*"))) == 2 and (run / "report.html").exists()


def test_drawing_goes_on_where_it_was_killed(pipeline: Path) -> None:
    folder = pipeline.parent
    options = ["prompt='a dog'", "num_images=40", "method.batch_size=1", "method.sampling.num_inference_steps=10"]
    draw = command("generate.py", folder, *options)
    first = folder / "first"
    stopped_once([*draw, f"output={first}"], lambda: len(list(first.glob("*.png"))) >= 3)
    early = {path: path.stat().st_mtime_ns for path in first.glob("*.png")}
    assert 3 <= len(early) < 40
    subprocess.run([*draw, f"output={first}"], cwd=ROOT, check=True, capture_output=True)
    assert {path: path.stat().st_mtime_ns for path in early} == early
    subprocess.run([*draw, f"output={folder}/second"], cwd=ROOT, check=True, capture_output=True)
    names = sorted(path.name for path in first.glob("*.png"))
    assert names == sorted(path.name for path in (folder / "second").glob("*.png")) and len(names) == 41
    for name in names:
        assert (first / name).read_bytes() == (folder / "second" / name).read_bytes()
