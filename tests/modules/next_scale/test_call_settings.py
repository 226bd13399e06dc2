"""Settings of published models: calls know them, and what is left open is theirs."""

from dataclasses import asdict
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from src.modules.generator import model_sampling
from src.modules.next_scale.infinity.pipeline import SAMPLING
from src.modules.next_scale.pipeline import CallSettings
from src.modules.next_scale.switti.sampling import SwittiSampling
from tests.modules.next_scale.tiny_infinity import tiny_pipeline

BACKBONES = Path(__file__).parents[3] / "conf" / "backbone"


def published(name: str) -> dict[str, object]:
    return OmegaConf.to_container(OmegaConf.load(BACKBONES / f"{name}.yaml"))["sampling"]


@pytest.mark.parametrize(("name", "temperature"), [("infinity_2b", 0.5), ("infinity_8b", 1.0)])
def test_published_infinities_have_settings_of_their_own(name: str, temperature: float) -> None:
    assert model_sampling(SAMPLING, published(name))["temperature"] == temperature


@pytest.mark.parametrize(("name", "scales", "guided"), [("switti_512", 10, 8), ("switti_1024", 14, 11)])
def test_published_swittis_leave_the_last_scales_unguided(name: str, scales: int, guided: int) -> None:
    sampling = SwittiSampling(**model_sampling(asdict(SwittiSampling()), published(name)))
    assert [scale > 1 for scale in sampling.guidance(scales)] == [0 < index < guided for index in range(scales)]


def test_a_line_tells_what_the_model_and_what_the_method_says(tmp_path: Path) -> None:
    pipeline = tiny_pipeline(tmp_path, sampling={"temperature": 1.0, "guidance_scale": 2.0})
    settings = CallSettings(pipeline, {"guidance_scale": None, "top_k": 1})
    assert settings.arguments == {"guidance_scale": 2.0, "top_k": 1}
    assert str(settings) == "guidance_scale=2.0 temperature=1.0 top_k=1"
