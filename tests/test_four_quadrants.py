"""Four colours in reading order: what no bag of words can paint, LLMDiff must. Ten minutes on one core."""

from pathlib import Path

import lightning as L
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline

from src.data.corpus import CorpusData
from src.data.quadrants import QuadrantData, colors_of, quadrant_text, read, split
from src.modules.backbone import DiffusionBackbone
from src.modules.llm.language_model import LanguageModel
from src.modules.llm.options import AdapterOptions, EncodingOptions
from src.modules.llm_encoder import LLMEncoder
from src.modules.llmdiff import LLMDiff
from src.modules.llmdiff_pipeline import LLMDiffPipeline
from src.modules.pretrain.language_model import LanguageModelPretraining
from src.modules.pretrain.text_to_image import SCHEDULER, TextToImagePretraining

pytestmark = pytest.mark.slow
SIDE = 8
# Guidance destroys samples of so flat a world.
DRAWING = {"num_inference_steps": 20, "guidance_scale": 1.0, "output_type": "latent", "height": SIDE, "width": SIDE}


def fit(module: L.LightningModule, data: L.LightningDataModule, steps: int) -> None:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(max_steps=steps, accelerator="cpu", limit_val_batches=0, enable_model_summary=False, **quiet)
    trainer.fit(module, data)


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llm")
    module = LanguageModelPretraining(str(folder), 96, 256, num_layers=4, num_heads=4, context=32)
    fit(module, CorpusData(quadrant_text, 64, 1_000_000), 1_500)
    module.export()
    return folder


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> DiffusionBackbone:
    """A base model whose own text encoder knows the order of words; it works on pixels."""
    folder = str(tmp_path_factory.mktemp("sd"))
    rates = {"learning_rate": 2e-3, "text_learning_rate": 1e-3, "ema_decay": 0.99}
    module = TextToImagePretraining(folder, [32, 64], latent_channels=3, text_width=64, text_layers=2, **rates)
    fit(module, QuadrantData(32), 1_300)
    module.ema.copy_to(module.averaged)
    module.unet.set_default_attn_processor()
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL(block_out_channels=(32,), latent_channels=3),
        text_encoder=module.text_encoder.requires_grad_(False).eval(),
        tokenizer=module.tokenizer,
        unet=module.unet.requires_grad_(False).eval(),
        scheduler=DDIMScheduler(**SCHEDULER, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return DiffusionBackbone(pipeline, "quadrants")


def all_four_right(draw) -> float:
    """Share of the held-out captions whose four quadrants have their colours."""
    captions = split()[1]
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(captions))]
    painted = read(draw(captions, generator=generators, **DRAWING).images)
    return sum(colors_of(one) == found for one, found in zip(captions, painted, strict=True)) / len(captions)


def with_adapter(backbone: DiffusionBackbone, language_model: Path, features: str, phi_bias: str) -> float:
    encoder = LLMEncoder(LanguageModel.from_pretrained(str(language_model)), EncodingOptions(features=features))
    rates = {"learning_rate": 3e-3, "scalar_learning_rate": 3e-3, "schedule": "cosine", "num_warmup_steps": 50}
    options = AdapterOptions(phi_bias=phi_bias)
    module = LLMDiff(backbone, encoder, "not exported", options, ema_decay=0.99, **rates)
    fit(module, QuadrantData(32), 1_000)
    module.ema.copy_to(module.averaged)
    return all_four_right(LLMDiffPipeline(backbone.pipeline, module.adapter.eval(), encoder))


def test_the_base_model_can_paint_what_is_asked(backbone: DiffusionBackbone) -> None:
    assert all_four_right(backbone.pipeline) > 0.9


def test_the_block_wise_score_carries_word_order(backbone: DiffusionBackbone, language_model: Path) -> None:
    assert with_adapter(backbone, language_model, "llmdiff", "mean") > 0.9


def test_embeddings_carry_no_word_order(backbone: DiffusionBackbone, language_model: Path) -> None:
    # 24 orders of the four colours.
    assert with_adapter(backbone, language_model, "embed", "mean") < 0.2


def test_a_bias_of_its_own_for_each_position_tells_positions(backbone: DiffusionBackbone, language_model: Path) -> None:
    """So with the default start even embeddings are no bag of words."""
    assert with_adapter(backbone, language_model, "embed", "rows") > 0.9
