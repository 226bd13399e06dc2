from pathlib import Path

import pytest
import torch

from src.modules.backbones.unet import UNetBackbone
from src.modules.generator import usable_device
from src.modules.latexblend.generator import ConceptGenerator
from tests.tiny import tiny_sd


def test_auto_is_the_gpu_where_there_is_one() -> None:
    assert usable_device("auto", "method.device").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert usable_device("cpu", "method.device").type == "cpu"


@pytest.mark.parametrize("name", ["cuda:99", "gpu"])
def test_a_device_that_is_not_there_gets_a_sentence(name: str) -> None:
    with pytest.raises(ValueError, match=f"method.device is '{name}', which torch cannot use.*method.device=cpu"):
        usable_device(name, "method.device")


def test_a_generator_moves_its_backbone_if_told_to(tmp_path: Path) -> None:
    backbone = UNetBackbone(tiny_sd(tmp_path), "tiny")
    assert ConceptGenerator(backbone).backbone.device.type == "cpu"
    assert ConceptGenerator(backbone, device="meta").backbone.device.type == "meta"
