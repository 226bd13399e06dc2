"""The world's autoencoder and text-to-image model: a resumed training is the same, and what is exported loads."""

from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from src.data.world.datamodules import WorldData
from src.modules.training.learner import LearnerModule
from src.modules.world.autoencoder import AutoencoderPretraining
from src.modules.world.text_to_image import TextToImagePretraining
from tests.pretrainings import check_resume, fit, module


def data(folder: Path, latents: bool) -> WorldData:
    code = str(folder / "code.safetensors")
    return WorldData(str(folder / "cache"), 4, 32, 4, code_path=code, latent_channels=8, latents=latents)


def autoencoder(folder: Path) -> LearnerModule:
    return module(AutoencoderPretraining(str(folder / "sd"), str(folder / "code.safetensors"), [8, 8, 8, 8], 8))


def text_to_image(folder: Path, **options) -> LearnerModule:
    return module(TextToImagePretraining(str(folder / "sd"), [32, 32], 8, text_width=32, text_layers=1, **options))


@pytest.mark.parametrize(("build", "latents"), [(autoencoder, False), (text_to_image, True)])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path: Path, build, latents: bool) -> None:
    check_resume(build, partial(data, latents=latents), tmp_path)


def test_the_two_exports_are_one_stock_pipeline(tmp_path: Path) -> None:
    vae = autoencoder(tmp_path)
    fit(vae, data(tmp_path, False), limit_val_batches=0)
    painter = text_to_image(tmp_path)
    with pytest.raises(ValueError, match="world/sd_vae"):
        painter.export()
    vae.export()
    fit(painter, data(tmp_path, True), limit_val_batches=0)
    average = [parameter.clone() for parameter in painter.ema.shadow_params]
    painter.export()
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "sd", dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline("a red dog", num_inference_steps=2, height=64, width=64).images[0].size == (64, 64)
    assert torch.allclose(next(pipeline.unet.parameters()), average[0], atol=1e-3)


def test_a_share_of_captions_is_read_alone(tmp_path: Path) -> None:
    def text(share: float) -> torch.Tensor:
        learner = text_to_image(tmp_path, phrases_alone=share).learner
        ids = learner._ids(["a red dog left of a blue cat", "a sketch of a green car at night"])
        with torch.no_grad():
            return learner._mixed_text(ids, torch.Generator().manual_seed(0))

    plain, half, alone = text(0.0), text(0.5), text(1.0)
    assert torch.equal(half[1], plain[1]) and not torch.allclose(half[0], plain[0])
    assert not torch.allclose(alone[0], plain[0]) and not torch.allclose(alone[1], plain[1])
    # Nothing stands before the first phrase, so its rows are the plain caption's.
    assert torch.allclose(alone[0, :4], plain[0, :4], atol=1e-6)
