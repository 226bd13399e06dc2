"""Stable Diffusion 3.5 medium and a cut FLUX.1 of real widths, random weights: they learn and draw within 24 GiB."""

import resource
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel, T5TokenizerFast

from src.data.request import Request
from src.data.subject import ConceptData, Zoom
from src.data.world.tokenizers import write_t5_tokenizer
from src.modules.backbones.base import Backbone
from src.modules.backbones.flux import FluxBackbone
from src.modules.backbones.sd3 import SD3Backbone
from src.modules.latexblend.flows import Objective, Subject
from src.modules.latexblend.learner import LaTexBlend
from src.modules.training.learner import LearnerModule
from tests.modules.backbones.test_sd3 import MEDIUM
from tests.test_full_size import WITHIN_KIB, made_in, noise_image, one_step, text_config
from tests.tiny import tokenizer

SIDE = 512


def autoencoder(scaling_factor: float, shift_factor: float) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=16,
        sample_size=1024,
        scaling_factor=scaling_factor,
        shift_factor=shift_factor,
    )


def sd35_medium(folder: Path) -> Backbone:
    words = tokenizer(folder / "words")
    words.model_max_length = 77
    with made_in(torch.bfloat16):
        pipeline = StableDiffusion3Pipeline(
            transformer=SD3Transformer2DModel(**MEDIUM),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=autoencoder(1.5305, 0.0609),
            text_encoder=CLIPTextModelWithProjection(text_config(768, 12, 12, "quick_gelu")),
            tokenizer=words,
            text_encoder_2=CLIPTextModelWithProjection(text_config(1280, 32, 20, "gelu")),
            tokenizer_2=words,
            text_encoder_3=None,
            tokenizer_3=None,
        )
    assert sum(weight.numel() for weight in pipeline.transformer.parameters()) > 2.2e9
    return SD3Backbone(pipeline, "sd35_medium")


def cut_flux(folder: Path) -> Backbone:
    """Two of 19 double blocks and four of 38 single ones."""
    words = tokenizer(folder / "words")
    words.model_max_length = 77
    write_t5_tokenizer(folder / "t5", 512)
    pieces = T5TokenizerFast.from_pretrained(folder / "t5")
    with made_in(torch.bfloat16):
        pipeline = FluxPipeline(
            transformer=FluxTransformer2DModel(num_layers=2, num_single_layers=4, guidance_embeds=True),
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
            vae=autoencoder(0.3611, 0.1159),
            text_encoder=CLIPTextModel(text_config(768, 12, 12, "quick_gelu")),
            tokenizer=words,
            text_encoder_2=T5EncoderModel(T5Config(vocab_size=len(pieces), d_model=4096, num_layers=1)),
            tokenizer_2=pieces,
        )
    return FluxBackbone(pipeline, "flux")


@pytest.mark.slow
@pytest.mark.parametrize(("made", "layers"), [(sd35_medium, 24), (cut_flux, 6)])
def test_a_concept_is_learnt_and_drawn_within_24_gib(made, layers: int, tmp_path: Path) -> None:
    noise_image(tmp_path / "photos" / "0.png")
    backbone = made(tmp_path)
    sampling = {"num_inference_steps": 1, "resolution": SIDE}
    where = (str(tmp_path / "cache"), str(tmp_path / "bank.safetensors"))
    learner = LaTexBlend(backbone, Subject("dog"), *where, Objective(prior_loss_weight=0), sampling=sampling)
    assert len(backbone.text_layers()) == 2 * layers
    data = ConceptData(str(tmp_path / "photos"), "dog", SIDE, num_views=1, zoom=Zoom(0.6), num_val=0)
    module = LearnerModule(learner, partial(torch.optim.AdamW, lr=1e-3))
    start = time.monotonic()
    one_step(tmp_path).fit(module, data)
    learnt = time.monotonic() - start
    size = Path(module.export()["concept bank"]).stat().st_size
    assert module.sample([Request("a <subject> on the grass", 0)])[0].size == (SIDE, SIDE)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    drawn = time.monotonic() - start - learnt
    print(f"a step {learnt:.0f} s, a picture of one step {drawn:.0f} s, {size / 2**20:.1f} MiB, {peak / 2**20:.1f} GiB")
    # Rank 4: factors of 2 x 4 x (1536 + 1536) or (3072 + 3072) half numbers in each layer, and offsets.
    width = next(iter(backbone.text_layers().values())).out_features
    assert size < 1.2 * (layers * 2 * 4 * 2 * width * 2 + 4 * 4096 * 2) + 2**16
    assert peak < WITHIN_KIB
