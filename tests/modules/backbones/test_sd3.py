"""Stable Diffusion 3: rows of two CLIPs and of T5, and a pipeline without T5."""

from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel

from src.modules.backbones.projections import text_projections
from src.modules.backbones.sd3 import SD3Backbone
from tests.tiny import LENGTH, tiny_sd3

MEDIUM = {
    "sample_size": 128,
    "num_layers": 24,
    "num_attention_heads": 24,
    "caption_projection_dim": 1536,
    "pos_embed_max_size": 384,
    "qk_norm": "rms_norm",
    "dual_attention_layers": tuple(range(13)),
}
"""Stable Diffusion 3.5 medium, as its repository has it; what is not here is the class's default."""


def test_a_concept_stands_among_the_rows_of_clip_and_of_t5(tmp_path: Path) -> None:
    backbone = SD3Backbone(tiny_sd3(tmp_path), "sd3")
    marked, ((_, positions),) = backbone.place("a photo of a <rex>", {"rex": "dog"})
    clip, t5 = backbone.tokenizers[0], backbone.tokenizers[2]
    words = clip.convert_ids_to_tokens(clip(marked.plain).input_ids)
    pieces = t5.convert_ids_to_tokens(t5(marked.plain).input_ids)
    in_clip, in_t5 = positions[:2], [at - LENGTH for at in positions[2:]]
    assert [words[at] for at in in_clip] == ["a</w>", "dog</w>"]
    assert "".join(pieces[at] for at in in_t5).replace("▁", "") == "adog"
    assert backbone.encode_text(["a dog"]).prompt_embeds.shape == (1, LENGTH + 256, 48)


def test_without_t5_its_rows_are_zeros_and_as_many_as_the_model_says(tmp_path: Path) -> None:
    whole = SD3Backbone(tiny_sd3(tmp_path / "whole", t5=False), "sd3")
    states = whole.encode_text(["a dog"]).prompt_embeds
    assert states.shape == (1, LENGTH + 256, 48) and not states[:, LENGTH:].any()
    few = SD3Backbone(tiny_sd3(tmp_path / "few", t5=False), "sd3", {"max_sequence_length": 0})
    assert few.encode_text(["a dog"]).prompt_embeds.shape == (1, LENGTH, 48)
    assert few.identity != whole.identity and "max_sequence_length" not in few.sampling
    assert few.overrides["backbone.sampling.max_sequence_length"] == 0


def test_the_published_shapes_of_medium_are_found() -> None:
    with torch.device("meta"):
        layers = text_projections(SD3Transformer2DModel(**MEDIUM))
    assert len(layers) == 2 * 24
    assert all((one.in_features, one.out_features) == (1536, 1536) for one in layers.values())
    assert not any("attn2" in name for name in layers), "the second attention of the image reads no text"


def test_fused_projections_are_refused(tmp_path: Path) -> None:
    pipeline = tiny_sd3(tmp_path)
    pipeline.transformer.fuse_qkv_projections()
    with pytest.raises(ValueError, match="unfuse_qkv_projections"):
        text_projections(pipeline.transformer)
