"""W&B: complete without a network, and never the end of a training."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from lightning.pytorch.loggers import CSVLogger
from omegaconf import OmegaConf

from src.callbacks.progress import Throughput
from src.callbacks.sample_grid import SampleGrid
from src.callbacks.trackers.loggers import log_config, log_exports
from src.callbacks.trackers.wandb import SECONDS, WandbTracker, history_of
from tests.callbacks.conftest import TinyData, TinyModule, tiny_trainer

CONFIG = OmegaConf.create({"name": "dog", "seed": 3, "method": {"learning_rate": 0.1, "seed": "${seed}"}})
PROMPTS = ["a <rex>", "a <rex> at night"]


def train(folder: Path, steps: int = 4) -> WandbTracker:
    """A whole run as the entry point drives it."""
    tracker = WandbTracker(
        str(folder), name="dog-s3", group="dog", job_type="train", tags=["latexblend", None], seconds=0.5
    )
    loggers = [CSVLogger(folder, name="logs"), tracker]
    callbacks = [SampleGrid(str(folder / "samples"), PROMPTS, num_seeds=1, every_n_steps=2), Throughput()]
    module = TinyModule()
    module.export_path = folder / "rex.safetensors"
    trainer = tiny_trainer(folder, steps, logger=loggers, callbacks=callbacks)
    log_config(loggers, CONFIG)
    trainer.fit(module, TinyData())
    log_exports(loggers, module.export())
    return tracker


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tracker sets ends with the test."""
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", *SECONDS):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A run without key, network or ``WANDB_MODE``: what it wrote, record by record, and what it left at home."""
    import wandb

    folder = tmp_path_factory.mktemp("run")
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_MODE", "WANDB_API_KEY"):
            patch.delenv(name, raising=False)
        for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
            patch.setenv(name, "to be replaced")
        patch.setenv("HOME", str(home))
        patch.setenv("NETRC", str(home / ".netrc"))
        # A busy machine may take its time here; what is told to W&B stays as it is.
        patch.setenv("WANDB_INIT_TIMEOUT", "300")
        notices: list[str] = []
        patch.setattr("src.callbacks.trackers.wandb.notice", notices.append)
        # Settings are read once per process.
        wandb.teardown()
        tracker = train(folder)
        wandb.teardown()
    log = next(folder.glob("wandb/offline-run-*/*.wandb"))
    # The SDK's own reader.
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(log)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, encoding="utf-8").stdout
    records = [json.loads(line) for line in shown.splitlines()]
    return SimpleNamespace(folder=folder, home=home, log=log, records=records, notices=notices, tracker=tracker)


def of_type(run: SimpleNamespace, kind: str) -> list[dict]:
    return [record[kind] for record in run.records if record["type"] == kind]


def test_without_a_key_it_is_offline_and_says_so_in_one_line(offline: SimpleNamespace) -> None:
    assert len(offline.notices) == 1
    assert offline.notices[0].startswith("W&B is offline, no API key is set; upload later: wandb sync ")
    assert not offline.tracker.guard.failed


def test_the_run_is_named_grouped_tagged_and_configured(offline: SimpleNamespace) -> None:
    run = of_type(offline, "run")[0]
    assert (run["display_name"], run["run_group"], run["job_type"], run["tags"], run["project"]) == (
        "dog-s3", "dog", "train", ["latexblend"], "atelier",
    )  # fmt: skip
    assert run["run_id"] == (offline.folder / "wandb" / "run_id.txt").read_text(encoding="utf-8").strip()
    updates = [config.get("update", {}) for config in of_type(offline, "config")]
    assert {"learning_rate": 0.1, "seed": 3} in [update.get("method") for update in updates]


def test_numbers_go_to_their_panels_against_the_step(offline: SimpleNamespace) -> None:
    history = [record["item"] for record in of_type(offline, "history")]
    assert [item["trainer/global_step"] for item in history if "train/loss" in item] == [0, 1, 2, 3]
    assert [item["trainer/global_step"] for item in history if "perf/it_s" in item] == [2, 3, 4]


def test_samples_are_captioned_and_their_pixels_lie_in_the_folder(offline: SimpleNamespace) -> None:
    history = [record["item"] for record in of_type(offline, "history")]
    drawn = [item for item in history if "samples/images.captions" in item]
    assert [item["trainer/global_step"] for item in drawn] == [0, 2, 4]
    assert drawn[1]["samples/images.captions"] == [f"{prompt} | seed=0 | step=2" for prompt in PROMPTS]
    for item in drawn:
        for name in item["samples/images.filenames"]:
            assert (offline.log.parent / "files" / name).read_bytes().startswith(b"\x89PNG")


def test_the_pixels_of_tables_and_the_bank_lie_in_the_folder_too(offline: SimpleNamespace) -> None:
    artifacts = of_type(offline, "artifact")
    tables = [artifact for artifact in artifacts if artifact["type"] == "run_table"]
    assert len(tables) == 3
    for artifact in artifacts:
        for entry in artifact["manifest"]["contents"]:
            staged = Path(entry["local_path"])
            assert staged.is_relative_to(offline.folder) and staged.stat().st_size == int(entry["size"])
    pictures = [entry for table in tables for entry in table["manifest"]["contents"] if entry["path"].endswith(".png")]
    assert all(Path(entry["local_path"]).read_bytes().startswith(b"\x89PNG") for entry in pictures) and pictures
    (bank,) = (artifact for artifact in artifacts if artifact["type"] == "concept-bank")
    assert bank["name"] == "concept-bank-rex"
    assert Path(bank["manifest"]["contents"][0]["local_path"]).read_bytes() == b"rows"


def test_nothing_is_left_outside_of_the_run_folder(offline: SimpleNamespace) -> None:
    assert not [path for path in offline.home.rglob("*") if path.is_file()]


def test_the_csv_log_is_whole(offline: SimpleNamespace) -> None:
    header = (offline.folder / "logs" / "version_0" / "metrics.csv").read_text(encoding="utf-8").splitlines()[0]
    assert {"train/loss", "perf/it_s"} <= set(header.split(","))
    assert (offline.folder / "logs" / "version_0" / "hparams.yaml").exists()


def test_a_resumed_training_continues_the_same_run(offline: SimpleNamespace) -> None:
    again = WandbTracker(str(offline.folder))
    assert again._persisted_id() == of_type(offline, "run")[0]["run_id"]
    assert WandbTracker(str(offline.folder / "other"))._wandb_init["resume"] == "allow"


PART = """
import os, signal, sys, time
from PIL import Image
from src.callbacks.trackers.wandb import WandbTracker
tracker = WandbTracker(sys.argv[1])
for step in range(int(sys.argv[2]), int(sys.argv[3])):
    tracker.log_metrics({"train/loss": 1 / (1 + step)}, step)
    tracker.log_metrics({"perf/it_s": 2.0}, step + 1)
    if step % 3 == 0:
        tracker.log_image("samples/images", [Image.new("RGB", (8, 8))], step=step)
if sys.argv[4] == "kill":
    time.sleep(5)
    os.kill(os.getpid(), signal.SIGKILL)
tracker.close()
"""
"""The steps of a training that is killed or ends."""


def test_a_killed_and_resumed_run_is_one_history_to_the_reader_of_wandb(tmp_path: Path) -> None:
    for first, last, end in ((0, 6, "kill"), (4, 9, "end")):
        command = [sys.executable, "-c", PART, str(tmp_path), str(first), str(last), end]
        subprocess.run(command, cwd=Path(__file__).parents[3], check=end == "end", capture_output=True)
    files = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    own = (tmp_path / "wandb" / "run_id.txt").read_text(encoding="utf-8").strip()
    assert [path.name for path in files] == 2 * [f"run-{own}.wandb"]
    rows = history_of(tmp_path / "wandb", own)
    assert [row["_step"] for row in rows] == list(range(len(rows)))
    steps = {
        name: [row["trainer/global_step"] for row in rows if name in row]
        for name in ("train/loss", "perf/it_s", "samples/images.captions", "samples/images.count")
    }
    assert steps["train/loss"] == list(range(9)) and steps["perf/it_s"] == list(range(1, 10))
    assert [0, 3, 6] in steps.values()


@pytest.mark.parametrize("broken", ["init", "folder"])
def test_a_training_goes_on_without_a_tracker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, broken: str
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise TimeoutError("nobody there\nand more")

    if broken == "init":
        monkeypatch.setattr("wandb.init", fail)
    else:
        (tmp_path / "wandb").write_text("a file where W&B wants a folder", encoding="utf-8")
    tracker = train(tmp_path)
    notices = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert len(notices) == 1
    assert notices[0].startswith("note: W&B could not start (")
    assert broken == "folder" or "TimeoutError: nobody there)" in notices[0]
    assert not tracker.started
    assert (tmp_path / "samples" / "step-000004.png").exists()
    assert len((tmp_path / "logs" / "version_0" / "metrics.csv").read_text(encoding="utf-8").splitlines()) > 4


def test_calls_that_fail_are_announced_once(tmp_path: Path, capsys) -> None:
    class Broken:
        calls = 0

        def __getattr__(self, name: str):
            Broken.calls += 1
            raise ConnectionError("lost")

    tracker = WandbTracker(str(tmp_path))
    tracker._experiment = Broken()
    for step in range(3):
        tracker.log_metrics({"train/loss": 1.0}, step)
    tracker.log_exports({"concept bank": str(Path(__file__))})
    tracker.finalize("failed")
    assert Broken.calls >= 5
    assert capsys.readouterr().err.splitlines() == [
        "note: W&B failed (ConnectionError: lost); the training goes on and its CSV log is whole"
    ]
