"""What a backbone says of itself, and what it refuses."""

from pathlib import Path

import pytest
import torch

from src.modules.backbones.base import SAMPLING, cross_attention_projections
from src.modules.backbones.unet import UNetBackbone
from src.modules.latexblend.generator import ConceptGenerator
from tests.tiny import tiny_sd, tiny_sdxl


@pytest.mark.parametrize("maker", [tiny_sd, tiny_sdxl])
def test_text_is_encoded_as_the_stock_pipeline_does(tmp_path: Path, maker) -> None:
    pipeline = maker(tmp_path)
    ours = UNetBackbone(pipeline, "tiny").encode_text(["a dog", "a red cat on the grass"])
    stock = pipeline.encode_prompt(
        ["a dog", "a red cat on the grass"], device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    assert torch.equal(ours.prompt_embeds, stock[0])
    if maker is tiny_sdxl:
        assert torch.equal(ours.pooled_prompt_embeds, stock[2])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_hash_does_not_depend_on_the_working_precision(tmp_path: Path, dtype: str) -> None:
    pipeline = tiny_sd(tmp_path)
    expected = UNetBackbone(pipeline, "tiny").fingerprint
    pipeline.save_pretrained(tmp_path / "saved")
    loaded = UNetBackbone.from_pretrained(str(tmp_path / "saved"), dtype)
    assert loaded.fingerprint == expected
    assert loaded.dtype == {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[dtype]


def test_another_backbone_has_another_hash(tmp_path: Path) -> None:
    pipeline = tiny_sd(tmp_path)
    first = UNetBackbone(pipeline, "tiny").fingerprint
    next(iter(cross_attention_projections(pipeline.unet).values())).weight.data[0, 0] += 1
    assert UNetBackbone(pipeline, "tiny").fingerprint != first


@pytest.mark.parametrize("maker", [tiny_sd, tiny_sdxl])
def test_keys_and_values_of_every_layer_are_called_so(tmp_path: Path, maker) -> None:
    unet = maker(tmp_path).unet
    found = cross_attention_projections(unet)
    for name, linear in found.items():
        kind, _, layer = name.partition(".")
        assert linear is getattr(unet.get_submodule(layer), {"k": "to_k", "v": "to_v"}[kind])
    assert len(found) == 2 * sum(name.endswith("attn2") for name, _ in unet.named_modules())


def test_fused_projections_are_refused(tmp_path: Path) -> None:
    pipeline = tiny_sd(tmp_path)
    pipeline.unet.fuse_qkv_projections()
    with pytest.raises(ValueError, match="unfuse_qkv_projections"):
        cross_attention_projections(pipeline.unet)


def test_a_folder_that_is_no_pipeline_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no model_index.json"):
        UNetBackbone.from_pretrained(str(tmp_path))
    with pytest.raises(ValueError, match="float32, float16, bfloat16"):
        UNetBackbone.from_pretrained(str(tmp_path), "int8")


def test_what_a_call_leaves_open_the_backbone_says(tmp_path: Path) -> None:
    pipeline, own = tiny_sd(tmp_path), {"num_inference_steps": 7, "guidance_scale": 2.0, "keep_context": True}
    pipeline.save_pretrained(tmp_path / "saved")

    def drawing(backbone: UNetBackbone, **given) -> dict:
        generator = ConceptGenerator(backbone, keep_context=given.pop("keep_context", None), sampling=given)
        return {key: {**generator.sampling, "keep_context": generator.keep_context}[key] for key in SAMPLING}

    backbone = UNetBackbone.from_pretrained(str(tmp_path / "saved"), sampling=own)
    assert drawing(backbone) == own
    given = {"num_inference_steps": 3, "guidance_scale": 0.0, "keep_context": False}
    assert drawing(backbone, **given) == given
    assert drawing(UNetBackbone(pipeline, "tiny")) == SAMPLING
    with pytest.raises(ValueError, match="no 'cfg'; choose among num_inference_steps, guidance_scale, keep_context"):
        UNetBackbone(pipeline, "tiny", {"cfg": 2.0})
    with pytest.raises(ValueError, match="no 'cfg'"):
        UNetBackbone.from_pretrained("no/such-hub-id", sampling={"cfg": 2.0})
