"""Previews: what a pass predicts of the picture, which in the last one is the picture itself."""

from pathlib import Path

import numpy as np
import pytest

from src.data.request import Request
from src.modules.latexblend.generator import ConceptGenerator
from src.run.desk.watching import watched
from tests.modules.backbones.test_contract import BACKBONES

ROUNDED = {"hunyuan dit": 20}
"""Grey levels by which the last preview may be off: this pipeline's sampler draws noise up to the end."""


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("family", BACKBONES)
def test_the_last_preview_is_the_picture(family: str, scale: float, tmp_path: Path) -> None:
    made, tiny = BACKBONES[family]
    backbone = made(tiny(tmp_path), family)
    generator = ConceptGenerator(backbone, sampling={"num_inference_steps": 4, "guidance_scale": scale})
    previews = []
    with watched(generator, lambda share, preview: previews.append(preview())):
        drawn = np.asarray(generator.sample([Request("a dog", 0)])[0], np.int16)
    away = [np.abs(np.asarray(each, np.int16) - drawn) for each in previews]
    if family == "qwen image" and scale > 1:
        # It passes the prompt and then the text that guidance leads away from, and rescales what comes of both.
        assert len(away) == 8 and away[-1].mean() < min(away[-2].mean(), away[0].mean())
    else:
        assert len(away) == 4 and away[-1].max() <= ROUNDED.get(family, 1) < away[0].max()
