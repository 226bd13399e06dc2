"""Models of real size with random weights: training and drawing with them fit 24 GiB of memory."""

import contextlib
import resource
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from hydra import compose
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, LlamaConfig, LlamaForCausalLM

from src.data.captions.datamodule import CaptionedImages
from src.data.captions.sources import CaptionFolder
from src.data.request import Request
from src.data.subject import ConceptData, Zoom
from src.modules.backbones.unet import UNetBackbone
from src.modules.latexblend.flows import Objective, Subject
from src.modules.latexblend.learner import LaTexBlend
from src.modules.llmdiff.encoder import LLMEncoder
from src.modules.llmdiff.language_model import LanguageModel
from src.modules.llmdiff.learner import LLMDiff
from src.modules.training.learner import LearnerModule
from src.run.doctor import examined
from tests.llms import tiny_tokenizer
from tests.single_files import write_single_file
from tests.tiny import SDXL_UNET, tokenizer

BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
WITHIN_KIB = 24 * 2**20


@contextlib.contextmanager
def made_in(dtype: torch.dtype) -> Iterator[None]:
    """New weights have this precision."""
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def noise_image(path: Path) -> None:
    path.parent.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (600, 512, 3), dtype=np.uint8)).save(path)


def one_step(folder: Path) -> L.Trainer:
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return L.Trainer(accelerator="cpu", max_steps=1, default_root_dir=folder, use_distributed_sampler=False, **quiet)


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


def autoencoder(sample_size: int, scaling_factor: float) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
        sample_size=sample_size,
        scaling_factor=scaling_factor,
    )


def sd15(folder: Path) -> StableDiffusionPipeline:
    words = tokenizer(folder / "words")
    words.model_max_length = 77
    return StableDiffusionPipeline(
        vae=autoencoder(512, 0.18215),
        text_encoder=CLIPTextModel(text_config(768, 12, 12, "quick_gelu")),
        tokenizer=words,
        # All else are the defaults of diffusers.
        unet=UNet2DConditionModel(sample_size=64, cross_attention_dim=768),
        scheduler=DDIMScheduler(**BETAS, steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def llama_1b(folder: Path) -> Path:
    """Llama 3.2 1B as it lies on disk, in bfloat16; its tokenizer knows a few words only."""
    config = LlamaConfig(
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=131072,
        tie_word_embeddings=True,
    )
    with made_in(torch.bfloat16):
        model = LlamaForCausalLM(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == 1_235_814_400
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def sdxl(folder: Path) -> StableDiffusionXLPipeline:
    words = tokenizer(folder / "words")
    words.model_max_length = 77
    unet = UNet2DConditionModel(**SDXL_UNET)
    return StableDiffusionXLPipeline(
        vae=autoencoder(1024, 0.13025),
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
    noise_image(tmp_path / "photos" / "0.png")
    with made_in(torch.bfloat16):
        pipeline = sdxl(tmp_path)
    backbone = UNetBackbone(pipeline, "sdxl")
    learner = LaTexBlend(
        backbone,
        Subject("dog"),
        str(tmp_path / "cache"),
        str(tmp_path / "bank.safetensors"),
        Objective(prior_loss_weight=0),
        sampling={"num_inference_steps": 1, "resolution": 512},
    )
    module = LearnerModule(learner, partial(torch.optim.AdamW, lr=2e-5))
    assert sum(p.numel() for p in learner.delta.changes.parameters()) == 340_787_200
    data = ConceptData(str(tmp_path / "photos"), "dog", 512, num_views=1, zoom=Zoom(0.6), num_val=0)
    one_step(tmp_path).fit(module, data)
    size = Path(module.export()["concept bank"]).stat().st_size
    assert 665_600 < size < 690_000
    assert module.sample([Request("a <subject> on the grass", 0)])[0].size == (512, 512)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < WITHIN_KIB


@pytest.mark.slow
def test_a_single_file_of_sd15_draws_with_clips_own_words_within_20_gib(tmp_path: Path) -> None:
    with made_in(torch.float16):
        pipeline = sd15(tmp_path)
    path = write_single_file(pipeline, tmp_path / "model.safetensors")
    weights = {name: tensor.clone() for name, tensor in pipeline.unet.state_dict().items()}
    backbone = UNetBackbone.from_pretrained(str(path), "float16")
    assert sum(parameter.numel() for parameter in backbone.unet.parameters()) == 859_520_964
    loaded = backbone.unet.state_dict()
    assert loaded.keys() == weights.keys() and all(torch.equal(loaded[name], weights[name]) for name in weights)
    assert len(backbone.tokenizers[0]) == 49408 and backbone.resolution == 512
    backbone = UNetBackbone.from_pretrained(str(path))
    drawn = backbone.draw(["a dog"], [0], backbone.settled({"num_inference_steps": 1, "resolution": 128}))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"peak {peak / 2**20:.1f} GiB")
    assert drawn[0].size == (128, 128) and peak < 20 * 2**20
    path.unlink()


@pytest.mark.slow
def test_the_doctor_passes_sd15(
    root: Path, tmp_path: Path, configurations: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    with made_in(torch.float32):
        sd15(tmp_path).save_pretrained(tmp_path / "sd15")
    few = ("method.sampling.num_inference_steps=1", "method.device=cpu", "paths.run_dir=none")
    page = examined(compose("doctor", ["backbone=sd15", f"backbone.path={tmp_path / 'sd15'}", *few]), "sd15")
    print(page.markdown())
    assert page.failed == [] and len(page.findings) == 7
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < WITHIN_KIB
    shutil.rmtree(tmp_path / "sd15")


@pytest.mark.slow
def test_llmdiff_learns_between_a_1b_model_and_sd15_within_24_gib(tmp_path: Path) -> None:
    noise_image(tmp_path / "photos" / "0.png")
    (tmp_path / "photos" / "0.txt").write_text("a red dog on the left of a very small tree " * 6, encoding="utf-8")
    llm = llama_1b(tmp_path / "llm")
    backbone = UNetBackbone(sd15(tmp_path), "sd15")
    assert sum(parameter.numel() for parameter in backbone.unet.parameters()) == 859_520_964
    encoder = LLMEncoder(LanguageModel.from_pretrained(str(llm), "bfloat16"))
    learner = LLMDiff(backbone, encoder, str(tmp_path / "adapter.safetensors"), caption_dropout=0.0)
    module = LearnerModule(learner, partial(torch.optim.AdamW, lr=1e-4), {"scalars": 1e-3}, ema_decay=0.9)
    before = {name: parameter.detach().clone() for name, parameter in learner.named_parameters()}
    one_step(tmp_path).fit(module, CaptionedImages(CaptionFolder(tmp_path / "photos"), 512))
    # The new branch starts at zero: its queries, keys and values learn from the second step on.
    moved = {name for name, p in learner.named_parameters() if not torch.equal(p, before[name])}
    assert {"adapter.phi.weight", "adapter.phi_bias"} <= moved
    assert len([name for name in moved if name.endswith("to_out.weight")]) == 16
    assert all(torch.isfinite(parameter).all() for parameter in learner.parameters())
    assert Path(module.export()["adapter"]).stat().st_size > 4 * sum(p.numel() for p in learner.parameters())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"peak {peak / 2**20:.1f} GiB")
    assert peak < WITHIN_KIB
    # pytest would keep its 2.5 GB.
    shutil.rmtree(llm)
