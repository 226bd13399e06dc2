"""The world's MM-DiT: a resumed training is the same, what is exported loads, and it learns the velocity."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from transformers import CLIPTextModel

from src.data.world.datamodules import WorldData
from src.modules.backbones.sd3 import SD3Backbone
from src.modules.training.learner import LearnerModule
from src.modules.world.flow_matching import FlowMatchingPretraining
from tests.pretrainings import check_resume, fit, module

CAPTIONS = ["a red dog", "a blue cat at night", "a car", "a green bird"]


@pytest.fixture(scope="module")
def teacher(root: Path) -> str:
    return str(root / "world" / "sd")


def data(folder: Path) -> WorldData:
    code = str(folder / "code.safetensors")
    return WorldData(str(folder / "cache"), 4, 32, 4, code_path=code, latent_channels=24, latents=True)


def learner(folder: Path, teacher: str, **options) -> FlowMatchingPretraining:
    return FlowMatchingPretraining(str(folder / "sd3"), teacher, num_layers=2, num_heads=1, **options)


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path: Path, teacher: str) -> None:
    def build(folder: Path) -> LearnerModule:
        return module(learner(folder, teacher))

    check_resume(build, data, tmp_path)


def test_the_export_is_a_backbone_with_the_average_and_the_text_of_the_teacher(tmp_path: Path, teacher: str) -> None:
    trained = module(learner(tmp_path, teacher))
    fit(trained, data(tmp_path), limit_val_batches=0)
    average = trained.ema.shadow_params[0].clone()
    trained.export()
    backbone = SD3Backbone.from_pretrained(str(tmp_path / "sd3"), sampling={"max_sequence_length": 0})
    assert torch.allclose(next(backbone.denoiser.parameters()), average, atol=1e-3)
    encoder = CLIPTextModel.from_pretrained(teacher, subfolder="text_encoder", dtype=torch.float32)
    ids = backbone.token_ids(["a red dog on the grass"])[0]
    with torch.no_grad():
        states = encoder(ids, output_hidden_states=True).hidden_states
    found = backbone.encode_text(["a red dog on the grass"]).prompt_embeds
    # The first encoder's states before its last layer, and beside them the second's, which are words and places alone.
    assert torch.allclose(found, torch.cat([states[2], states[0]], -1), atol=2e-3)
    assert backbone.draw(["a dog"], [0], backbone.settled({"num_inference_steps": 2}))[0].size == (64, 64)
    own = AutoencoderKL.from_pretrained(teacher, subfolder="vae")
    assert backbone.vae.config.scaling_factor == own.config.scaling_factor and backbone.vae.config.shift_factor == 0


def test_it_learns_the_velocity(tmp_path: Path, teacher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """``x_s = (1 - s) x + s noise``: a transformer that knows x finds ``noise - x`` in it, and has no loss."""
    made = learner(tmp_path, teacher)
    latents = torch.randn(4, 24, 8, 8, generator=torch.Generator().manual_seed(0))

    def velocity(noisy: Tensor, timestep: Tensor, **text: Tensor) -> SimpleNamespace:
        share = (timestep / 1000).view(-1, 1, 1, 1)
        return SimpleNamespace(sample=(noisy - latents) / share)

    monkeypatch.setattr(made.transformer, "forward", velocity)
    batch = {"caption": CAPTIONS, "latents": latents, "step": torch.tensor(0)}
    assert made.losses(batch, made.generators(batch, 0, 1)).max() < 1e-4


def test_half_of_the_captions_is_read_alone_and_text_encoders_stay_out_of_checkpoints(
    tmp_path: Path, teacher: str
) -> None:
    made = learner(tmp_path, teacher)
    ids = made._ids(["a red dog left of a blue cat", "a sketch of a green car at night"])
    with torch.no_grad():
        states, pooled = made._encode(ids)
        mixed, same = made._mixed_text(ids, torch.Generator().manual_seed(0))
    assert torch.equal(mixed[1], states[1]) and torch.equal(pooled, same)
    assert not torch.allclose(mixed[0, :, :128], states[0, :, :128])
    assert all(name.startswith("transformer.") for name in made.state_dict())
