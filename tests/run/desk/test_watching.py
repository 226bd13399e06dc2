"""Previews: what a pass predicts of the picture, which at the end of a flow is the picture itself."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.data.request import Request
from src.modules.backbones.flux import FluxBackbone
from src.modules.backbones.qwen_image import QwenImageBackbone
from src.modules.backbones.sana import SanaBackbone
from src.modules.backbones.sd3 import SD3Backbone
from src.modules.latexblend.generator import ConceptGenerator
from src.run.desk.watching import watched
from tests.tiny import tiny_flux, tiny_qwen_image, tiny_sd3
from tests.tiny_transformers import tiny_sana

FAMILIES = {
    "sd3": (SD3Backbone, tiny_sd3),
    "sana": (SanaBackbone, tiny_sana),
    "flux": (FluxBackbone, tiny_flux),
    "qwen": (QwenImageBackbone, lambda _: tiny_qwen_image()),
}


def seen(family: str, scale: float, folder: Path) -> tuple[list[Image.Image | None], Image.Image]:
    made, tiny = FAMILIES[family]
    generator = ConceptGenerator(
        made(tiny(folder), family), sampling={"num_inference_steps": 4, "guidance_scale": scale}
    )
    previews: list[Image.Image | None] = []
    with watched(generator, lambda share, preview: previews.append(preview())):
        return previews, generator.sample([Request("a dog", 0)])[0]


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_preview_of_a_flow_is_the_picture(family: str, scale: float, tmp_path: Path) -> None:
    previews, picture = seen(family, scale, tmp_path)
    drawn = np.asarray(picture, np.int16)
    away = [np.abs(np.asarray(each, np.int16) - drawn) for each in previews]
    # Qwen-Image passes the prompt and then the text that guidance leads away from, and gives their sum another length.
    assert len(away) == (8 if family == "qwen" and scale > 1 else 4)
    if family == "qwen" and scale > 1:
        assert away[-1].mean() < away[-2].mean() and away[-1].mean() < away[0].mean()
    else:
        assert away[-1].max() <= 1 < away[0].max()
