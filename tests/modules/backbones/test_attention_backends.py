"""What computes attention is switched by name, where diffusers can, and changes a picture by rounding alone."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

from src.data.request import Request
from src.modules.backbones.attention_backends import BACKENDS
from src.modules.backbones.flux import FluxBackbone
from src.modules.backbones.qwen_image import QwenImageBackbone
from src.modules.backbones.unet import UNetBackbone
from src.modules.latexblend.generator import ConceptGenerator
from tests.modules.backbones.test_contract import BACKBONES, bank
from tests.tiny import tiny_flux, tiny_qwen_image

MADE = {"flux": (FluxBackbone, tiny_flux), "qwen": (QwenImageBackbone, lambda folder: tiny_qwen_image())}


@pytest.fixture(autouse=True)
def _native() -> Iterator[None]:
    """Diffusers keeps what was switched last for the whole process."""
    yield
    _AttentionBackendRegistry.set_active_backend(AttentionBackendName.NATIVE)


def reached(denoiser: object) -> set[str]:
    """The names that diffusers' switch left in the processors of a denoiser."""
    found = [getattr(getattr(part, "processor", None), "_attention_backend", None) for part in denoiser.modules()]
    return {one.value for one in found if one is not None}


@pytest.mark.parametrize("kind", MADE)
def test_a_picture_is_the_same_but_for_rounding(kind: str, tmp_path: Path) -> None:
    made, tiny = MADE[kind]
    tiny(tmp_path).save_pretrained(tmp_path / "model")
    drawn = {}
    for name in (None, "math"):
        backbone = made.from_pretrained(str(tmp_path / "model"), attention=name)
        assert reached(backbone.denoiser) == ({"_native_math"} if name else set())
        generator = ConceptGenerator(backbone, {"rex": bank(backbone)}, {"num_inference_steps": 2})
        drawn[name] = np.asarray(generator.sample([Request("a <rex> on the grass", 0)])[0], np.int16)
        drawn[f"{name} identity"] = backbone.identity
    assert np.abs(drawn["math"] - drawn[None]).max() <= 1
    assert drawn["math identity"] == drawn["None identity"]


@pytest.mark.parametrize("family", BACKBONES)
def test_a_backbone_says_whether_the_switch_reaches_it(family: str, tmp_path: Path) -> None:
    made, tiny = BACKBONES[family]
    backbone = made(tiny(tmp_path), family)
    backbone.denoiser.set_attention_backend("_native_math")
    assert bool(reached(backbone.denoiser)) == made.switched


@pytest.mark.parametrize(
    ("made", "name", "sentence"),
    [
        (FluxBackbone, "fash", "backbone.attention is 'fash'; choose one of native, cudnn, efficient, math, flash,"),
        (FluxBackbone, "sage", "choose one of"),
        (FluxBackbone, "flash", "backbone.attention=flash is not here: .*flash-attn"),
        (UNetBackbone, "flash", "is for FLUX.1 and Qwen-Image: the attention of UNetBackbone calls torch's own"),
    ],
)
def test_what_is_not_here_is_said_before_weights_are_read(
    made: type, name: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffusers.models.attention_dispatch._CAN_USE_FLASH_ATTN", False)
    for refused in (
        made.from_pretrained,
        lambda path, attention: made.first_look({"path": path, "attention": attention}),
    ):
        with pytest.raises(ValueError, match=sentence):
            refused(str(tmp_path / "nothing"), attention=name)


def test_nothing_is_fetched_or_rounded_to_8_bits() -> None:
    assert BACKENDS and not [name for name, one in BACKENDS.items() if "hub" in one.value or "sage" in one.value]
