"""What docs/python.md says runs as it stands, and draws what the command line draws."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from src.data.request import Request
from src.modules.backbones.unet import UNetBackbone
from src.modules.latexblend.generator import ConceptGenerator
from tests.modules.latexblend.test_blending import bank


def test_the_page_draws_a_subject_and_builds_a_training(root: Path, tmp_path: Path, monkeypatch) -> None:
    if not (root / "world" / "sd").exists():
        pytest.skip("world/sd is not in this checkout")
    monkeypatch.chdir(root)
    backbone = UNetBackbone.from_pretrained("world/sd")
    file = tmp_path / "rex.safetensors"
    bank(backbone, 0).save(file)
    drawing, training = re.findall(
        r"```python\n(.*?)```", (root / "docs" / "python.md").read_text(encoding="utf-8"), re.S
    )
    known: dict[str, Any] = {"BANK": str(file)}
    exec(drawing, known)
    request = [Request("a <rex> on the grass", 3)]
    assert len(known["images"]) == 4
    expected = ConceptGenerator(backbone, {"rex": str(file)}).sample(request)[0]
    assert abs(np.asarray(known["images"][3], int) - np.asarray(expected, int)).max() <= 1
    exec(training, known)
    assert known["backbone"].name == "sd" and known["cfg"].concept == "rex"
