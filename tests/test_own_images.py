"""LLMDiff trains on images of one's own, whichever way they are kept, with the commands that its comment gives."""

import json
import tarfile
from pathlib import Path

import pytest
from hydra import compose
from omegaconf import open_dict
from PIL import Image

from src.run.cli import respelled
from src.run.training import fit
from tests.llms import tiny_llm_folder
from tests.test_written_commands import COMMANDS, arguments_of
from tests.tiny import tiny_sd

SMALL = [
    "data.batch_size=4",
    "data.num_workers=0",
    "data.resolution=64",
    "callbacks.samples.profile=null",
    "callbacks.samples.prompts=[a dog]",
    "method.learner.sampling.num_inference_steps=1",
    "trainer.max_steps=2",
    "trainer.val_check_interval=1",
]
pytestmark = pytest.mark.usefixtures("configurations")


def folder(place: Path) -> str:
    place.mkdir()
    lines = []
    for number in range(8):
        Image.new("RGB", (80, 64), (30 * number, 0, 0)).save(place / f"{number}.png")
        lines.append(json.dumps({"file_name": f"{number}.png", "text": f"a dog {number}"}))
    (place / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return f"data.source.folder={place}"


def dataset(place: Path) -> str:
    pytest.importorskip("datasets").load_dataset(
        "imagefolder", data_dir=folder(place).partition("=")[2], cache_dir=str(place / "cache")
    )["train"].save_to_disk(place / "saved")
    return f"data.source.path={place / 'saved'}"


def shards(place: Path) -> str:
    pytest.importorskip("webdataset")
    folder(place)
    for shard in range(4):
        with tarfile.open(place / f"{shard}.tar", "w") as tar:
            for number in (2 * shard, 2 * shard + 1):
                (place / f"{number}.txt").write_text(f"a dog {number}", encoding="utf-8")
                for suffix in ("png", "txt"):
                    tar.add(place / f"{number}.{suffix}", f"{number}.{suffix}")
    return f"data.train.shards='{place}/{{0..3}}.tar'"


@pytest.mark.parametrize(
    ("data", "make"), [("captioned_folder", folder), ("captioned_hf", dataset), ("captioned_webdataset", shards)]
)
def test_two_steps_are_trained(tmp_path: Path, data: str, make) -> None:
    (command,) = (command for command in COMMANDS if f"data={data}" in command)
    script, typed = arguments_of(command)
    made = make(tmp_path / "images")
    own = [argument for argument in typed if not argument.startswith(made.partition("=")[0])]
    assert len(own) == len(typed) - 1
    tiny_sd(tmp_path / "words").save_pretrained(tmp_path / "sd")
    places = [f"backbone.path={tmp_path}/sd", f"llm.path={tiny_llm_folder(tmp_path / 'llm')}", "paths.run_dir=."]
    validated = [] if data == "captioned_webdataset" else ["data.num_val=4"]
    cfg = compose("train", respelled([*own, made, *SMALL, *validated, *places], script))
    with open_dict(cfg):
        cfg.paths.update({"run_dir": str(tmp_path / "run"), "cache_dir": str(tmp_path / "cache")})
    fitted = fit(cfg)
    assert Path(fitted.made["adapter"]).is_file() and (tmp_path / "run" / "samples" / "step-000002.png").exists()
    assert "train/loss" in fitted.metrics and ("val/loss" in fitted.metrics) == bool(validated)
