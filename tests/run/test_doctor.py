"""doctor.py passes a good checkpoint, and each of its checks fails for the fault that it is there for."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose
from omegaconf import DictConfig
from PIL import Image

from src.data import prompts
from src.modules.backbones.base import Backbone
from src.modules.backbones.unet import UNetBackbone
from src.modules.latexblend import learner
from src.modules.latexblend.bank import ProjectionCache
from src.modules.latexblend.generator import BlendedText
from src.run import checks
from src.run.doctor import Examination, examined
from tests.modules.backbones.test_contract import BACKBONES
from tests.tiny import tiny_flux, tiny_sd, tiny_sd3

CHECKS = [
    "files",
    "model",
    "no concepts, the stock pipeline",
    "places of concepts in prompts",
    "a step of training",
    "cached keys and values, plain ones",
    "a picture",
]
pytestmark = pytest.mark.usefixtures("configurations")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tiny_sd(tmp_path).save_pretrained(tmp_path / "sd")
    return tmp_path / "sd"


def of(path: Path, *overrides: str) -> DictConfig:
    # A tiny tokenizer of few words has no room for more.
    quick = ("paths.run_dir=none", "method.device=cpu", "method.sampling.num_inference_steps=2")
    return compose("doctor", [f"backbone.path={path}", *quick, *overrides])


def failed(page: Examination) -> dict[str, str]:
    assert [one.check for one in page.findings] == CHECKS
    return {one.check: one.seen for one in page.failed}


def test_the_worlds_own_model_passes_every_check(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    page = examined(of(root / "world" / "sd", "paths.cache_dir=" + str(tmp_path / "cache")), "world_sd")
    assert failed(page) == {} and list(tmp_path.iterdir()) == []
    text = page.markdown()
    assert text.count("- passed: ") == len(CHECKS) and "FAILED" not in text and "What to do" not in text
    assert f"torch {torch.__version__.partition('+')[0]}" in text and str(Path.home()) not in text


@pytest.mark.parametrize(("option", "tiny"), [("sd35_medium", tiny_sd3), ("flux_dev", tiny_flux)])
def test_a_model_of_joint_attention_passes_every_check(
    option: str, tiny: Callable[[Path], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny(tmp_path).save_pretrained(tmp_path / "model")
    given = (
        tmp_path / "model",
        f"backbone={option}",
        "backbone.dtype=float32",
        "method.sampling.num_inference_steps=4",
    )
    assert failed(examined(of(*given), option)) == {}
    monkeypatch.setattr(checks, "joint_blended", lambda *_: nullcontext())
    [(check, sentence)] = failed(examined(of(*given), option)).items()
    assert check == "cached keys and values, plain ones" and "so the concept does not act" in sentence


@pytest.mark.parametrize("family", BACKBONES)
def test_places_are_found_in_the_text_of_every_family(family: str, tmp_path: Path) -> None:
    made, tiny = BACKBONES[family]
    assert checks.places(made(tiny(tmp_path), family)) == "10 awkward prompts are read as they should be"


@pytest.fixture(params=["cut short", "no safetensors", "no weights"])
def broken(request: pytest.FixtureRequest, model: Path) -> tuple[Path, str]:
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    if request.param == "cut short":
        os.truncate(weights, weights.stat().st_size - 8)
        return model, "unet/diffusion_pytorch_model.safetensors cannot be read"
    if request.param == "no safetensors":
        weights.rename(weights.with_suffix(".bin"))
        return model, "unet/diffusion_pytorch_model.bin is no safetensors file"
    for path in model.rglob("*.safetensors"):
        path.unlink()
    return model, "sd holds no weights"


def test_a_file_that_cannot_be_read_is_named(broken: tuple[Path, str]) -> None:
    path, sentence = broken
    with pytest.raises(ValueError, match=sentence):
        checks.files(path)


def test_one_file_is_examined_like_a_folder(model: Path) -> None:
    told = checks.files(model / "vae" / "diffusion_pytorch_model.safetensors")
    assert told.startswith("diffusion_pytorch_model.safetensors (") and ", F32, " in told


def drawn_with_other_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = Backbone.draw
    monkeypatch.setattr(Backbone, "draw", lambda self, prompts, seeds, *rest: draw(self, prompts, [7], *rest))


def of_one_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backbone, "draw", lambda *_, **__: [Image.new("RGB", (64, 64), (9, 9, 9))])


def shifted(monkeypatch: pytest.MonkeyPatch) -> None:
    found = checks.concept_positions

    def by_one(*given):
        marked, rows = found(*given)
        return marked, [(name, [at - 1 for at in positions]) for name, positions in rows]

    monkeypatch.setattr(checks, "concept_positions", by_one)


def cut_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(tokenizer, texts):
        return tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids

    monkeypatch.setattr(checks, "tokenize", cut)


def lost(monkeypatch: pytest.MonkeyPatch) -> None:
    found = prompts.parse_prompt

    def first(*given):
        marked = found(*given)
        return type(marked)(marked.plain, marked.mentions[:1])

    monkeypatch.setattr(prompts, "parse_prompt", first)


def no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learner, "per_sample_mse", lambda prediction, *_: (0 * prediction).flatten(1).sum(1))


def infinite_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    # The root of nothing is nothing, and its slope is infinite.
    monkeypatch.setattr(learner, "per_sample_mse", lambda prediction, *_: (0 * prediction).sqrt().flatten(1).sum(1))


def stale(monkeypatch: pytest.MonkeyPatch) -> None:
    cached = ProjectionCache.__call__
    monkeypatch.setattr(ProjectionCache, "__call__", lambda self, *given: 1.5 * cached(self, *given))


def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BlendedText, "__call__", lambda self, name, hidden, projected: projected)


@pytest.mark.parametrize(
    ("plant", "found"),
    [
        (drawn_with_other_seeds, {"no concepts, the stock pipeline": "the pictures differ in "}),
        (shifted, {"places of concepts in prompts": "the tokens of <subject> say "}),
        (cut_in_silence, {"places of concepts in prompts": "a prompt that is too long was cut in silence"}),
        (lost, {"places of concepts in prompts": "mentions 2 concepts, but 1 were found"}),
        (no_gradient, {"a step of training": "all gradients are zero"}),
        (infinite_gradient, {"a step of training": "a gradient is not finite at step 1"}),
        (stale, {"cached keys and values, plain ones": "the pictures differ in "}),
        (idle, {"cached keys and values, plain ones": "so the concept does not act"}),
        (of_one_colour, {"a picture": "it is all of one colour, 9 of 255"}),
    ],
)
def test_each_check_finds_its_fault(
    root: Path, monkeypatch: pytest.MonkeyPatch, model: Path, plant, found: dict[str, str]
) -> None:
    monkeypatch.chdir(root)
    plant(monkeypatch)
    page = examined(of(model), "world_sd")
    seen = failed(page)
    [(check, sentence)] = found.items()
    assert sentence in seen[check]
    if check == "a step of training":
        assert seen["a picture"] == "no concept was learnt to draw with: see a step of training"
    assert f"- **FAILED**: {check}: " in page.markdown() and f"\n- {check}: " in page.markdown()


def test_a_weight_that_is_not_finite_is_named(model: Path, tmp_path: Path) -> None:
    pipeline = tiny_sd(tmp_path)
    pipeline.vae.decoder.conv_out.bias.data[1] = torch.nan
    with pytest.raises(ValueError, match=r"the weights vae\.decoder\.conv_out\.bias are not finite"):
        checks.model(type("Drawn", (), {"backbone": UNetBackbone(pipeline, "sd")}))  # type: ignore[arg-type]


@pytest.fixture
def at_home(tmp_path: Path) -> Iterator[Path]:
    home = tmp_path / "home"
    (home / "sd" / "unet").mkdir(parents=True)
    (home / "sd" / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"")
    yield home
    shutil.rmtree(home)


def test_a_failure_ends_with_1_and_leaves_a_page_that_names_no_home(root: Path, tmp_path: Path, at_home: Path) -> None:
    page = tmp_path / "page.md"
    command = [
        sys.executable,
        "doctor.py",
        f"backbone.path={at_home / 'sd'}",
        f"report={page}",
        f"paths.root={tmp_path}",
    ]
    ended = subprocess.run(
        command, cwd=root, capture_output=True, text=True, encoding="utf-8", env={**os.environ, "HOME": str(at_home)}
    )
    assert ended.returncode == 1, ended.stderr
    text = page.read_text(encoding="utf-8")
    assert text.strip() in ended.stdout and text.count("**FAILED**") == len(CHECKS)
    assert "~/sd is no diffusers pipeline folder" in text and str(at_home) not in text
    assert "- files: give backbone.path=FOLDER" in text
    assert not any((tmp_path / "doctor").rglob("*.yaml"))
