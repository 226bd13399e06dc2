"""Four colours in reading order: what no bag of words can paint, LLMDiff must. Some ten minutes on one core."""

from pathlib import Path

import lightning as L
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline

from src.data.corpus import CorpusData
from src.data.quadrants import QuadrantData, colors_of, quadrant_text, read, split
from src.modules.backbone import DiffusionBackbone
from src.modules.llm.language_model import LanguageModel
from src.modules.llm.options import EncodingOptions
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


def with_adapter(backbone: DiffusionBackbone, language_model: Path, features: str, folder: Path) -> float:
    encoder = LLMEncoder(LanguageModel.from_pretrained(str(language_model)), EncodingOptions(features=features))
    rates = {"learning_rate": 3e-3, "scalar_learning_rate": 3e-3, "schedule": "cosine", "num_warmup_steps": 50}
    module = LLMDiff(backbone, encoder, str(folder / "adapter.safetensors"), ema_decay=0.99, **rates)
    fit(module, QuadrantData(32), 1_000)
    module.ema.copy_to(module.averaged)
    return all_four_right(LLMDiffPipeline(backbone.pipeline, module.adapter.eval(), encoder))


def test_the_block_wise_score_carries_word_order_and_embeddings_do_not(
    backbone: DiffusionBackbone, language_model: Path, tmp_path: Path
) -> None:
    own = all_four_right(backbone.pipeline)
    score = with_adapter(backbone, language_model, "llmdiff", tmp_path)
    embeddings = with_adapter(backbone, language_model, "embed", tmp_path)
    print(f"all four right: own encoder {own:.2f}, block-wise score {score:.2f}, embeddings {embeddings:.2f}")
    assert own > 0.9, "the base model must be able to paint what is asked"
    assert score > 0.9
    # 24 orders of the four colours.
    assert embeddings < 0.2
