"""Concepts act in a denoiser whose blocks torch has compiled, and nothing is compiled anew for another picture."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from src.data.request import Request
from src.modules.backbones import memory
from src.modules.backbones.unet import UNetBackbone
from src.modules.latexblend.bank import ConceptBank
from src.modules.latexblend.generator import ConceptGenerator
from tests.tiny import tiny_sd

PROMPTS = ["a cat", "a <rex>"]
OPTIONS = [{}, {"keep_context": True}, {"rectification": {"strength": 2.0}}, {}]


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Torch traces and cuts blocks as for its compiler, which this machine may lack."""
    monkeypatch.setattr(memory, "BACKEND", "aot_eager")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def drawn(backbone: UNetBackbone, options: dict) -> list[np.ndarray]:
    generator = torch.Generator().manual_seed(0)
    rows = {n: torch.randn(2, one.out_features, generator=generator) for n, one in backbone.text_layers().items()}
    rex = ConceptBank(rows, {"class_noun": "dog", "backbone_hash": backbone.fingerprint})
    drawing = ConceptGenerator(backbone, {"rex": rex}, {"num_inference_steps": 2, "guidance_scale": 3.0}, **options)
    return [np.asarray(drawing.sample([Request(prompt, 0)])[0], np.int16) for prompt in PROMPTS]


def test_pictures_are_those_of_the_plain_model_whatever_acts_in_turn(eager: None, tmp_path: Path) -> None:
    tiny_sd(tmp_path).save_pretrained(tmp_path / "sd")
    plain, compiled = (UNetBackbone.from_pretrained(str(tmp_path / "sd"), compile=one) for one in (False, True))
    for options in OPTIONS:
        for own, other in zip(drawn(plain, options), drawn(compiled, options), strict=True):
            assert np.abs(own - other).max() <= 1, options
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert plain.identity == compiled.identity


def test_another_picture_compiles_nothing_anew(eager: None, tmp_path: Path) -> None:
    tiny_sd(tmp_path).save_pretrained(tmp_path / "sd")
    backbone = UNetBackbone.from_pretrained(str(tmp_path / "sd"), compile=True)
    drawn(backbone, {})
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for _ in range(2):
        drawn(backbone, {})
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before > 0
