"""Ablations from nothing, killed in the middle and started again: banks or adapters, images, comparison."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.llms import tiny_llm_folder
from tests.test_kill import stopped_once
from tests.tiny import tiny_sd

ROOT = Path(__file__).parents[1]


@pytest.fixture
def sweep(tmp_path: Path) -> list[str]:
    tiny_sd(tmp_path).save_pretrained(tmp_path / "sd")
    (tmp_path / "photos").mkdir()
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
    training = ["data.num_class_images=2", "data.num_views=4", "data.batch_size=1", "trainer.max_steps=12"]
    return [
        *(sys.executable, "eval.py", "sweep=base_flow", f"paths.root={tmp_path}/outputs"),
        *(f"paths.cache_dir={tmp_path}/cache", f"backbone.path={tmp_path}/sd"),
        *(f"~suite.subjects.{name}" for name in ("mittens", "pip", "clover", "bolt", "herbie")),
        *(f"training.{override}" for override in training),
        *(f"training.backbone.path={tmp_path}/sd", f"training.paths.cache_dir={tmp_path}/cache"),
        f"suite.subjects.rex.data.instance_dir={tmp_path}/photos",
        *("protocol.prompts=['a {} on the grass','a {} at night','a photo of a {}']", "protocol.num_seeds=2"),
        *("method.sampling.num_inference_steps=2", "method.batch_size=2"),
    ]


def test_a_killed_sweep_finishes_when_started_again(sweep: list[str], tmp_path: Path) -> None:
    stopped_once(sweep, lambda: len(list(tmp_path.glob("outputs/sweep/base_flow/*/images/*.png"))) >= 2)
    banks = {path: path.stat().st_mtime_ns for path in tmp_path.glob("cache/banks/*.safetensors")}
    images = {path: path.stat().st_mtime_ns for path in tmp_path.glob("outputs/sweep/base_flow/*/images/*.png")}
    assert len(banks) == 1 and images
    ended = subprocess.run(sweep, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert ended.returncode == 0, ended.stderr
    (folder,) = tmp_path.glob("outputs/sweep/base_flow/*")
    assert {path: path.stat().st_mtime_ns for path in {**banks, **images}} == {**banks, **images}
    assert len(list(tmp_path.glob("cache/banks/*.safetensors"))) == 2
    # Both arms share the control: 3 prompts x 2 seeds x (control + two banks).
    assert len(list((folder / "images").glob("*.png"))) == 18
    record = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    assert list(record["means"]) == [f"training.method.learner.objective.base_flow={on}" for on in (True, False)]
    assert {path.name for path in folder.iterdir()} >= {"figure.png", "table.md", "report.html"}
    # A point that the sweep had before its file was shortened.
    shutil.copytree(folder / "1", folder / "2")
    again = subprocess.run(sweep, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert again.returncode == 0
    assert json.loads((folder / "comparison.json").read_text(encoding="utf-8"))["means"] == record["means"]
    assert "training rex" not in again.stdout and "drawing" not in again.stdout


@pytest.fixture
def text_encoder_sweep(tmp_path: Path) -> list[str]:
    tiny_sd(tmp_path).save_pretrained(tmp_path / "sd")
    data = ["kind=scenes", "num_train=8", "num_val=2", "batch_size=2", "latents=false", "code_path=null"]
    training = [
        *(f"data.{override}" for override in data),
        *(f"backbone.path={tmp_path}/sd", f"llm.path={tiny_llm_folder(tmp_path / 'llm')}"),
        *(f"paths.cache_dir={tmp_path}/cache", "trainer.max_steps=20", "callbacks.checkpoint.every_n_train_steps=4"),
    ]
    return [
        *(sys.executable, "eval.py", "sweep=text_encoder", f"paths.root={tmp_path}/outputs"),
        *(f"paths.cache_dir={tmp_path}/cache", f"backbone.path={tmp_path}/sd"),
        *(f"training.{override}" for override in training),
        *("protocol.kinds=[short,relation]", "protocol.num_captions=2", "method.sampling.num_inference_steps=2"),
    ]


def test_adapters_of_a_killed_sweep_are_trained_on_and_compared(text_encoder_sweep: list[str], tmp_path: Path) -> None:
    adapters = tmp_path / "cache" / "adapters"
    stopped_once(text_encoder_sweep, lambda: list(adapters.glob("*/checkpoints/last.ckpt")))
    assert not list(adapters.glob("*.safetensors"))
    ended = subprocess.run(text_encoder_sweep, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert ended.returncode == 0, ended.stderr
    assert len(list(adapters.glob("*.safetensors"))) == 3 and not list(adapters.glob("*/checkpoints"))
    # The one that was killed has the curves of two starts.
    assert sorted(len(list(folder.glob("logs/*"))) for folder in adapters.glob("*/")) == [1, 1, 2]
    (folder,) = tmp_path.glob("outputs/sweep/text_encoder/*")
    # The base model has no training seed: 4 captions x (base + 3 adapters).
    assert len(list((folder / "images").glob("*.png"))) == 16
    record = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    assert list(record["means"]) == ["text_encoder=base", "text_encoder=llmdiff"]
    assert (record["training_seeds"], record["failed"]) == ([0, 1, 2], {})


def test_a_plan_counts_what_the_sweep_has_drawn(sweep: list[str], tmp_path: Path) -> None:
    shorter = [word for word in sweep if not word.startswith("protocol.prompts=")] + ["protocol.prompts=['a {}']"]
    assert subprocess.run(shorter, cwd=ROOT, capture_output=True).returncode == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("outputs/sweep/base_flow/*/**/*")}
    planned = subprocess.run([*shorter, "dry_run=true"], cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert planned.returncode == 0, planned.stderr
    tables = [path.read_text(encoding="utf-8") for path in tmp_path.glob("outputs/sweep/base_flow/*_plan/*/table.md")]
    assert len(tables) == 2 and all(re.search(r"left to draw *\| *0 *\|", table) for table in tables), tables
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_failing_point_stops_no_other(sweep: list[str], tmp_path: Path) -> None:
    own = ["suite=world" if argument.startswith("sweep=") else argument for argument in sweep]
    points = ["-m", "training.method.templates=maybe,pool"]
    ended = subprocess.run([*own[:2], *points, *own[2:]], cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == "error: method.learner.objective.templates is 'maybe'; choose pool or fixed"
    (folder,) = tmp_path.glob("outputs/sweep/multirun/*")
    assert "choose pool or fixed" in (folder / "0" / "error.txt").read_text(encoding="utf-8")
    assert (folder / "1" / "metrics.json").exists()
    assert "choose pool or fixed" in (folder / "table.md").read_text(encoding="utf-8")


def test_what_cannot_be_scored_is_said_before_a_bank_is_trained(sweep: list[str], tmp_path: Path) -> None:
    (tmp_path / "photos" / "1.png").unlink()
    single = ["suite=world" if argument.startswith("sweep=") else argument for argument in sweep]
    ended = subprocess.run(single, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith("error: rex has one reference image")
    assert not (tmp_path / "cache" / "banks").exists()


def test_trainings_of_a_second_start_overwrite_none_of_the_first(tmp_path: Path) -> None:
    ranks = ["trainer.devices=2", f"paths.root={tmp_path}", "method.rank=4,8"]
    command = [sys.executable, "train.py", "-m", "+experiment=concept_dog", *ranks]
    for number in (1, 2, 2):
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
        assert ended.returncode == 1
        assert "would start the whole sweep on every rank" in ended.stderr.splitlines()[-1]
        assert len(list(tmp_path.glob("sweep/concept_dog/*/0/error.txt"))) == number
        command = [*command, "resume=true"] if number == 2 else command
