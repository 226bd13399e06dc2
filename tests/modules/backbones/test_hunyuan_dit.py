"""Hunyuan-DiT: a concept stands among the rows of two text encoders, which cut words differently."""

from pathlib import Path

import pytest
import torch

from src.data.request import Request
from src.modules.backbones.families import families
from src.modules.backbones.hunyuan_dit import HunyuanDiTBackbone
from src.modules.backbones.memory import Memory
from src.modules.backbones.unet import UNetBackbone
from src.modules.latexblend.flows import Subject
from src.modules.latexblend.generator import ConceptGenerator
from src.modules.rivals.custom_diffusion import CustomDiffusion
from tests.modules.backbones.test_contract import bank
from tests.tiny import tiny_pixart
from tests.tiny_transformers import tiny_hunyuan_dit


@pytest.fixture
def backbone(tmp_path: Path) -> HunyuanDiTBackbone:
    return HunyuanDiTBackbone(tiny_hunyuan_dit(tmp_path), "hunyuan")


def test_a_concept_stands_among_the_rows_of_both_encoders(backbone: HunyuanDiTBackbone) -> None:
    marked, ((_, positions),) = backbone.place("a photo of a big <rex>, my zyx", {"rex": "dog"})
    clip, t5 = backbone.token_ids([marked.plain])
    words = backbone.tokenizers[0].convert_ids_to_tokens(clip[0]) + backbone.tokenizers[1].convert_ids_to_tokens(t5[0])
    assert [words[at] for at in positions] == ["a", "dog", "\u2581a", "\u2581dog"]
    assert [at >= 77 for at in positions] == [False, False, True, True] and words[0] == "[CLS]"


def test_the_denoiser_reads_the_states_as_the_stock_pipeline_hands_them_over(backbone: HunyuanDiTBackbone) -> None:
    """Every argument of a training step is that of the stock call, whose text, size and places stand for it."""
    calls: list[tuple[tuple, dict]] = []
    backbone.denoiser.register_forward_pre_hook(lambda module, *call: calls.append(call), with_kwargs=True)
    settings = backbone.settled({"num_inference_steps": 1, "guidance_scale": 1.0})
    backbone.draw(["a dog", "a red cat"], [0, 1], settings)
    noised = backbone.corrupt(torch.zeros(2, 4, 8, 8), [torch.Generator().manual_seed(0)] * 2)
    with torch.no_grad():
        backbone.denoise(noised, backbone.encode_text(["a dog", "a red cat"]))
    (_, stock), (_, ours) = calls
    assert {**stock, "return_dict": True}.keys() - {"return_dict"} == ours.keys()
    for name, given in ours.items():
        pairs = zip(given, stock[name], strict=True) if isinstance(given, tuple) else [(given, stock[name])]
        assert all(torch.equal(one, other) for one, other in pairs), name


def test_both_encoders_are_asked_whether_a_prompt_is_too_long(backbone: HunyuanDiTBackbone) -> None:
    """A rare word is one unknown token to one of them, and a token for each letter to the other."""
    with pytest.raises(ValueError, match="prompt of 91 tokens, but the text encoder takes 77: shorten"):
        backbone.token_ids(["grass " * 89])
    long = ConceptGenerator(backbone, {"rex": bank(backbone)}).readable("a <rex> " + "grass " * 89)
    assert len(backbone.tokenizers[0](long.replace("<rex>", "dog")).input_ids) == 77


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"rectification": {"strength": 0.5}}, "rectification reckons with queries and keys"),
        ({"blending_guidance": {"num_steps": 1, "form": "noise"}}, "blending_guidance reckons with queries and keys"),
    ],
)
def test_what_reckons_with_maps_is_refused_where_keys_are_normed(
    backbone: HunyuanDiTBackbone, options: dict, told: str
) -> None:
    with pytest.raises(ValueError, match=f"{told} of cross-attention, which a HunyuanDiT2DModel norms first"):
        ConceptGenerator(backbone, {"rex": bank(backbone)}, **options)
    ConceptGenerator(backbone, {"rex": bank(backbone)}).prepare(Request("a <rex>", 0))


@pytest.mark.parametrize(
    ("memory", "told"),
    [
        ({"compute_again": True}, "compute_again computes activations again, and .* no HunyuanDiT2DModel: leave it"),
        ({"offload": "all"}, "offload=all fetches layer by layer.*give backbone.memory.offload=encoders"),
    ],
)
def test_what_diffusers_cannot_do_to_save_memory_is_said(backbone: HunyuanDiTBackbone, memory: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Memory(**memory).apply(backbone.pipeline, backbone.denoiser)


def test_weights_that_are_read_without_their_layer_keep_their_bits(backbone: HunyuanDiTBackbone) -> None:
    plain = backbone.draw(["a dog"], [0], backbone.settled({"num_inference_steps": 1}))
    Memory(weights="float8_e4m3fn").apply(backbone.pipeline, backbone.denoiser)
    drawn = backbone.draw(["a dog"], [0], backbone.settled({"num_inference_steps": 1}))
    assert backbone.denoiser.time_extra_emb.pooler.k_proj.weight.dtype == torch.float32
    assert backbone.denoiser.blocks[0].ff.net[0].proj.weight.dtype == torch.float8_e4m3fn
    assert plain[0].size == drawn[0].size


def test_a_pipeline_of_another_family_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    tiny_pixart(tmp_path).save_pretrained(tmp_path / "saved")
    for weights in (tmp_path / "saved").rglob("*.safetensors"):
        weights.write_bytes(b"")
    told = (
        "saved holds a PixArtSigmaPipeline, but UNetBackbone takes a StableDiffusionPipeline or .*; choose backbone=pix"
    )
    for look in (UNetBackbone.first_look, lambda given: UNetBackbone.from_pretrained(**given)):
        with pytest.raises(ValueError, match=told):
            look({"path": str(tmp_path / "saved")})
    index = tmp_path / "saved" / "model_index.json"
    index.write_text(index.read_text(encoding="utf-8").replace("PixArtSigmaPipeline", "LuminaPipeline"), "utf-8")
    told = "but UNetBackbone takes .*no backbone takes that: there are .*HunyuanDiT.*Sana.*docs/adding.md says how"
    with pytest.raises(ValueError, match=told):
        UNetBackbone.first_look({"path": str(tmp_path / "saved")})
    assert {HunyuanDiTBackbone, UNetBackbone} < set(families())


def test_rivals_say_that_a_word_must_stand_once(backbone: HunyuanDiTBackbone, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs a word to stand at one place of a prompt, but in hunyuan"):
        CustomDiffusion(backbone, Subject("dog"), str(tmp_path), str(tmp_path / "rex.safetensors"))
