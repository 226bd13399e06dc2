"""What is uploaded when push is asked for: the files, and a page by which a stranger can use them."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from src.data.commands import command
from src.modules.latexblend.bank import ConceptBank
from src.run.push import check_push, pushed
from src.run.targets import CONF
from src.run.types import check_types

ROWS = {"k.a": torch.ones(2, 3), "v.a": torch.ones(2, 3)}
METADATA = {"class_noun": "dog", "backbone_hash": "f00d", "references": "/home/me/photos/rex", "steps": "400"}


class FakeHub:
    """Keeps what it is told, and what is in the folder while it is there."""

    def __init__(self, kept: Path) -> None:
        self.kept, self.made = kept, dict[str, Any]()

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
        self.made = {"repo": repo_id, "private": private, "exist_ok": exist_ok}

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> None:
        assert repo_id == self.made["repo"], "a repository is there before files are sent to it"
        shutil.copytree(folder_path, self.kept)
        self.made["message"] = commit_message


def settings(**changed: Any) -> DictConfig:
    base = {"push": "me/rex", "license": "apache-2.0", "name": "concept_rex", "backbone": {"path": "them/sdxl"}}
    return OmegaConf.create({**base, **changed})


def training(folder: Path) -> dict[str, str]:
    """What a training of LaTexBlend leaves."""
    bank = ConceptBank(ROWS, METADATA).save(folder / "exports" / "rex.safetensors")
    samples = folder / "samples"
    samples.mkdir()
    for name, colour in (("references", "red"), ("step-000000", "black"), ("step-000400", "blue")):
        Image.new("RGB", (8, 8), colour).save(samples / f"{name}.png")
    given = {"prompt": "a <rex> on the beach", "bank.rex": str(bank), "backbone.path": "/models/my sdxl.safetensors"}
    return {"samples": str(samples), "concept bank": str(bank), "next": command("generate.py", given)}


TYPED = ["+experiment=concept_sdxl", "data.instance_dir=/home/me/photos/rex", "push=me/rex", "license=apache-2.0"]


def test_files_and_a_page_that_tells_what_they_are(tmp_path: Path) -> None:
    hub, made = FakeHub(tmp_path / "kept"), training(tmp_path)
    where = pushed(settings(), made, {"train/loss": 0.123456, "val/clip_t": 0.5}, TYPED, hub)
    assert where == "https://huggingface.co/me/rex (private, if it is new)"
    assert hub.made == {"repo": "me/rex", "private": True, "exist_ok": True, "message": "rex, learnt with Atelier"}
    kept = {path.name: path for path in (tmp_path / "kept").iterdir()}
    assert set(kept) == {"README.md", "rex.safetensors", "references.png", "grid.png"}
    assert kept["rex.safetensors"].read_bytes() == Path(made["concept bank"]).read_bytes()
    assert Image.open(kept["grid.png"]).getpixel((0, 0)) == (0, 0, 255), "the last grid"
    page = kept["README.md"].read_text(encoding="utf-8")
    for line in (
        "license: apache-2.0",
        "base_model: them/sdxl",
        "# rex",
        "A concept bank of a dog, learnt with Atelier in 400 steps.",
        "![The photos that it was learnt from](references.png)",
        "![What it draws](grid.png)",
        "hf download me/rex rex.safetensors --local-dir .",
        "python train.py +experiment=concept_sdxl data.instance_dir=rex",
        "| references | rex |",
        "| train/loss | 0.1235 |",
    ):
        assert line in page.splitlines(), line
    assert "python generate.py \"prompt='a <rex> on the beach'\" bank.rex=rex.safetensors" in page
    assert "/home" not in page and "/models" not in page and str(tmp_path) not in page


def test_a_folder_of_this_machine_is_no_base_model(tmp_path: Path) -> None:
    hub = FakeHub(tmp_path / "kept")
    pushed(settings(backbone={"path": "world/sd"}), training(tmp_path), {}, [], hub)
    page = (tmp_path / "kept" / "README.md").read_text(encoding="utf-8")
    assert "base_model" not in page and "at the end" not in page


def test_a_training_without_a_file_is_not_uploaded(tmp_path: Path) -> None:
    hub = FakeHub(tmp_path / "kept")
    with pytest.raises(ValueError, match="push=me/rex is given, but this training made no file of weights"):
        pushed(settings(), {"samples": str(tmp_path)}, {}, [], hub)
    assert hub.made == {}


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"push": "rex"}, "push=rex says not whose it is; give push=USER/REPO"),
        ({"push": "me/rex/dog"}, r"push=me/rex/dog is no name of a repository \(.*give push=USER/REPO"),
        ({"push": "me/--"}, "push=me/-- is no name of a repository"),
        ({"license": "my own: free"}, "license=my own: free is no licence of the hub; give its identifier"),
        ({"hpo": {"n_trials": 3}}, "uploads what one training made, not a search; leave hpo or push out"),
    ],
)
def test_what_could_not_be_uploaded_is_refused_before_a_training(
    changed: dict[str, Any], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_x")
    with pytest.raises(ValueError, match=sentence):
        check_push(settings(**changed))


def test_no_token_and_no_network_are_told_before_a_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match="push=me/rex needs the hub, but HF_HUB_OFFLINE is set"):
        check_push(settings())
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with pytest.raises(ValueError, match="push=me/rex needs a token that may write; type: hf auth login"):
        check_push(settings())
    check_push(settings(push=None))
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_x")
    check_push(settings())


def test_the_keys_are_there_and_nothing_is_uploaded_unless_asked() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", ["+experiment=concept_dog"])
        assert cfg.push is None and cfg.license == "other"
        check_types(compose("train", ["+experiment=concept_dog", "push=me/rex", "license=mit"]))
