"""Samplers by name: those of diffusers, on the checkpoint's own noise schedule."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler

from src.data.request import Request
from src.modules.backbones.pixart import PixArtBackbone
from src.modules.backbones.schedulers import NAMES, check_scheduler, scheduler_like
from src.modules.backbones.unet import UNetBackbone
from src.modules.latexblend.generator import ConceptGenerator
from tests.tiny import tiny_pixart, tiny_sd

HERE = [name for name in NAMES if not name.startswith("lms")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_sd(tmp_path, prediction_type="v_prediction").save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_a_name_is_the_stock_scheduler_and_a_part_of_the_identity(folder: Path) -> None:
    own = UNetBackbone.from_pretrained(str(folder))
    backbone = UNetBackbone.from_pretrained(str(folder), scheduler="dpmpp_2m_sde_karras")
    settings = {"num_inference_steps": 4, "guidance_scale": 3.0}
    drawn = ConceptGenerator(backbone, sampling=settings).sample([Request("a dog", 0)])[0]
    stock = DiffusionPipeline.from_pretrained(folder)
    stock.scheduler = DPMSolverMultistepScheduler.from_config(
        stock.scheduler.config, algorithm_type="sde-dpmsolver++", use_karras_sigmas=True
    )
    seed = [torch.Generator().manual_seed(0)]
    expected = stock("a dog", **settings, height=64, width=64, generator=seed).images[0]
    assert np.array_equal(np.asarray(drawn), np.asarray(expected))
    assert backbone.identity != own.identity and backbone.content_hash == own.content_hash
    assert backbone.overrides["backbone.scheduler"] == "dpmpp_2m_sde_karras"
    kept = UNetBackbone.content({"path": str(folder)})
    assert "sampler" not in kept and UNetBackbone.content({"path": str(folder), "scheduler": "ddim"}) != kept


def test_training_keeps_the_checkpoints_noise_schedule(folder: Path) -> None:
    own = UNetBackbone.from_pretrained(str(folder)).noise_scheduler
    for name in ("lcm", "euler_karras", "unipc"):
        other = UNetBackbone.from_pretrained(str(folder), scheduler=name)
        assert other.noise_scheduler.config == own.config
        assert torch.equal(other.noise_scheduler.alphas_cumprod, own.alphas_cumprod)
        assert other.pipeline.scheduler.config.prediction_type == "v_prediction"


@pytest.mark.parametrize("name", HERE)
def test_every_sampler_draws_few_steps_with_any_guidance_and_by_the_seed_alone(tmp_path: Path, name: str) -> None:
    pipeline = tiny_sd(tmp_path)
    pipeline.register_modules(scheduler=scheduler_like(pipeline.scheduler, name))
    backbone = UNetBackbone(pipeline, "sd")
    for steps, guidance in ((1, 0.0), (1, 3.0), (3, 1.0)):
        settings = backbone.settled({"num_inference_steps": steps, "guidance_scale": guidance})
        both = backbone.draw(["a dog", "a cat"], [0, 1], settings)
        alone = backbone.draw(["a cat"], [1], settings)
        assert np.abs(np.asarray(both[1], np.int16) - np.asarray(alone[0], np.int16)).max() <= 1


def test_other_names_and_other_models_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = r"backbone\.scheduler is 'dpm\+\+'; choose one of ddim, .*dpmpp_2m_karras.*unipc"
    with pytest.raises(ValueError, match=told):
        UNetBackbone.first_look({"path": "some/model", "scheduler": "dpm++"})
    with pytest.raises(ValueError, match=told):
        UNetBackbone.from_pretrained("some/model", scheduler="dpm++")
    monkeypatch.setattr("src.modules.backbones.schedulers.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"backbone\.scheduler=lms_karras integrates with scipy.*pip install scipy"):
        check_scheduler("lms_karras")
    with pytest.raises(ValueError, match="needs a noise schedule of betas, and a object has none"):
        scheduler_like(object(), "ddim")


def test_pixart_takes_them_too(tmp_path: Path) -> None:
    tiny_pixart(tmp_path).save_pretrained(tmp_path / "saved")
    backbone = PixArtBackbone.from_pretrained(str(tmp_path / "saved"), scheduler="euler_a")
    backbone.draw(["a dog"], [0], backbone.settled({"num_inference_steps": 2}))
    assert type(backbone.pipeline.scheduler).__name__ == "EulerAncestralDiscreteScheduler"
