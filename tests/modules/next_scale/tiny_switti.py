"""Switti at the smallest useful size with random weights, and the reference's own, read by the converter."""

import json
from pathlib import Path

import torch
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from src.modules.next_scale.switti.autoencoder import VQVAE
from src.modules.next_scale.switti.convert import load_transformer, load_vqvae
from src.modules.next_scale.switti.pipeline import SwittiPipeline
from src.modules.next_scale.switti.transformer import SwittiTransformer
from tests.modules.next_scale.golden import FOLDER, golden
from tests.tiny import LENGTH, tokenizer

SIDES = (1, 2, 3, 4)
GOLDEN_SIDES = (1, 2, 3, 4, 5, 7)
GOLDEN_CONFIG = {
    "depth": 3,
    "embed_dim": 48,
    "num_heads": 3,
    "patch_nums": GOLDEN_SIDES,
    "use_ar": False,
    "use_crop_cond": True,
    "rope": True,
    "rope_theta": 10000,
    "rope_size": 128,
    "use_swiglu_ffn": True,
}


def shaken(model: nn.Module, size: float = 0.2) -> nn.Module:
    """Weights large enough that nothing is close to doing nothing."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=size, generator=generator)
    return model.requires_grad_(False).eval()


def tiny_transformer(**changes: object) -> SwittiTransformer:
    sizes = {"depth": 2, "width": 32, "num_heads": 2, "sides": SIDES, "text_dim": 40, "pooled_dim": 24}
    return shaken(SwittiTransformer(**{**sizes, "latent_channels": 4, "num_codes": 16, **changes}))


def tiny_vqvae(**changes: object) -> VQVAE:
    sizes = {"latent_channels": 4, "num_codes": 16, "base_channels": 8, "channel_multipliers": (1, 2)}
    return shaken(VQVAE(**{**sizes, "layers_per_block": 1, "norm_num_groups": 4, **changes}))


def tiny_pipeline(folder: Path, **changes: object) -> SwittiPipeline:
    words = tokenizer(folder / "words")
    encoders = []
    for width in (16, 24):
        config = CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=LENGTH,
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id,
        )
        encoders.append(shaken(CLIPTextModel(config)))
    pipeline = SwittiPipeline(tiny_transformer(**changes), tiny_vqvae(), *encoders, words, words)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def published(folder: Path, name: str, config: dict[str, object]) -> Path:
    """The reference's weights in a folder like the published ones."""
    golden("switti_A", name)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "model.safetensors").symlink_to((FOLDER / "switti_A" / f"{name}.safetensors").resolve())
    return folder


def golden_models(folder: Path) -> tuple[SwittiTransformer, VQVAE]:
    transformer = load_transformer(published(folder / "transformer", "transformer", GOLDEN_CONFIG))
    vae = load_vqvae(published(folder / "vqvae", "vqvae", {}))
    return transformer.requires_grad_(False), vae.requires_grad_(False)
