"""SDXL at its real size with random weights: one training step and one blended sampling step fit 24 GiB of memory."""

import resource
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from src.data.concept import ConceptData, Zoom
from src.data.request import Request
from src.modules.backbone import DiffusionBackbone
from src.modules.latexblend import LaTexBlend
from tests.tiny import SDXL_UNET, tokenizer


def text_config(width: int, layers: int, heads: int, act: str) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=49408,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        projection_dim=width,
        hidden_act=act,
        max_position_embeddings=77,
        # The world's tokenizer stands in for OpenAI's, which is on no disk here.
        bos_token_id=744,
        eos_token_id=745,
        pad_token_id=745,
    )


def sdxl(folder: Path) -> StableDiffusionXLPipeline:
    words = tokenizer(folder / "words")
    words.model_max_length = 77
    unet = UNet2DConditionModel(**SDXL_UNET)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
        sample_size=1024,
        scaling_factor=0.13025,
    )
    return StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text_config(768, 12, 12, "quick_gelu")),
        text_encoder_2=CLIPTextModelWithProjection(text_config(1280, 32, 20, "gelu")),
        tokenizer=words,
        tokenizer_2=words,
        unet=unet,
        scheduler=EulerDiscreteScheduler(beta_schedule="scaled_linear", steps_offset=1, timestep_spacing="leading"),
        add_watermarker=False,
    )


@pytest.mark.slow
def test_sdxl_learns_and_draws_within_24_gib(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (600, 512, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photos" / "0.png")
    torch.set_default_dtype(torch.bfloat16)
    try:
        pipeline = sdxl(tmp_path)
    finally:
        torch.set_default_dtype(torch.float32)
    backbone = DiffusionBackbone(pipeline, "sdxl")
    learner = LaTexBlend(
        backbone,
        "dog",
        str(tmp_path / "cache"),
        str(tmp_path / "bank.safetensors"),
        prior_loss_weight=0,
        sampling={"num_inference_steps": 1, "resolution": 512},
    )
    assert sum(p.numel() for p in learner.delta.changes.parameters()) == 340_787_200
    data = ConceptData(str(tmp_path / "photos"), "dog", 512, num_views=1, zoom=Zoom(0.6), num_val=0)
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(learner, data)
    size = Path(learner.export()["concept bank"]).stat().st_size
    assert 665_600 < size < 690_000
    assert learner.sample([Request("a <subject> on the grass", 0)])[0].size == (512, 512)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 24 * 2**20
