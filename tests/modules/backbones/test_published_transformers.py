"""Published transformers at full size on the meta device: a wrong name or width is found without weights.

Configurations are those of diffusers' conversion scripts, as far as they are known: no ``config.json`` was at hand.
"""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import HunyuanDiT2DModel, PixArtTransformer2DModel, SanaTransformer2DModel

from src.modules.backbones.base import Backbone, Noised, Text
from src.modules.backbones.hunyuan_dit import HunyuanDiTBackbone
from src.modules.backbones.pixart import PixArtBackbone
from src.modules.backbones.sana import SanaBackbone
from src.modules.latexblend.bank import transformed_projections
from src.modules.latexblend.flows import ConceptDelta

PIXART = {"sample_size": 128, "num_layers": 28, "caption_channels": 4096, "cross_attention_dim": 1152}
SANA = {"in_channels": 32, "out_channels": 32, "caption_channels": 2304, "mlp_ratio": 2.5, "sample_size": 32}
SANA_600M = {
    "num_attention_heads": 36,
    "num_layers": 28,
    "num_cross_attention_heads": 16,
    "cross_attention_head_dim": 72,
    "cross_attention_dim": 1152,
}
HUNYUAN = {
    "in_channels": 4,
    "patch_size": 2,
    "sample_size": 128,
    "hidden_size": 1408,
    "num_layers": 40,
    "mlp_ratio": 4.3637,
    "use_style_cond_and_image_meta_size": False,
}
PUBLISHED: dict[str, tuple[type[Backbone], Any, dict[str, Any], tuple[int, int, int], int]] = {
    # Backbone and transformer, its configuration, rows and width of text and channels of latents, layers.
    "PixArt-Sigma": (
        PixArtBackbone, PixArtTransformer2DModel, {**PIXART, "use_additional_conditions": False}, (300, 4096, 4), 28
    ),
    "Sana 0.6B": (SanaBackbone, SanaTransformer2DModel, {**SANA, **SANA_600M}, (300, 2304, 32), 28),
    "Sana 1.6B": (SanaBackbone, SanaTransformer2DModel, SANA, (300, 2304, 32), 20),
    "Hunyuan-DiT 1.2": (HunyuanDiTBackbone, HunyuanDiT2DModel, HUNYUAN, (333, 2048, 4), 40),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_is_read_and_hooked_at_every_layer(name: str) -> None:
    kind, transformer, config, (rows, width, channels), layers = PUBLISHED[name]
    with torch.device("meta"):
        backbone = kind.__new__(kind)
        backbone.pipeline = SimpleNamespace(transformer=transformer(**config))
        side = backbone.denoiser.config.sample_size
        text = Text(torch.zeros(2, rows, width), mask=torch.ones(2, rows, dtype=torch.long))
        latents = torch.zeros(2, channels, side, side)
        read, seen = backbone.read_text(text.prompt_embeds), []
        projections = backbone.text_layers()
        assert len(projections) == 2 * layers
        delta = ConceptDelta(projections, [torch.zeros(width)], rank=4)

        def changed(layer: str, hidden: torch.Tensor, projected: torch.Tensor) -> torch.Tensor:
            assert hidden.shape == read.shape and projected.shape[-1] == projections[layer].out_features
            assert delta.weight(layer).shape == (projected.shape[-1], hidden.shape[-1])
            seen.append(layer)
            return projected

        with torch.no_grad(), transformed_projections(backbone.denoiser, changed):
            found = backbone.denoise(Noised(latents, torch.full((2,), 500.0), latents), text)
    assert found.shape == latents.shape and sorted(seen) == sorted(projections)
