"""The node for ComfyUI, with a stand-in for ComfyUI: which layer is which, and that the same noise is predicted."""

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from torch import Tensor, nn

from integrations.comfyui import NODE_CLASS_MAPPINGS
from integrations.comfyui.concepts import Blending, Concepts, block_of
from src.data.schema import RefusedFileError
from src.modules.backbones.original_names import original_name
from src.modules.backbones.unet import UNetBackbone
from src.modules.latexblend.bank import ConceptBank
from src.modules.latexblend.generator import BlendedText, ConceptGenerator, Placement, blended
from tests.single_files import unet_names
from tests.tiny import SDXL_UNET, UNET, tiny_sd

SD15 = {"block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768, "attention_head_dim": 8}
DEPTHS = {
    "sd15": {("input", 1, 2, 4, 5, 7, 8): 1, ("middle", 0): 1, ("output", *range(3, 12)): 1},
    "sdxl": {
        ("input", 4, 5): 2,
        ("input", 7, 8): 10,
        ("middle", 0): 10,
        ("output", 0, 1, 2): 10,
        ("output", 3, 4, 5): 2,
    },
}
"""Transformer blocks of the original UNets, as their published weights have them."""


def layers_of(unet: nn.Module) -> list[str]:
    return [name for name, _ in unet.named_modules() if name.endswith("attn2")]


@pytest.mark.parametrize(("kind", "config", "number"), [("sd15", SD15, 16), ("sdxl", SDXL_UNET, 70)])
def test_every_cross_attention_layer_of_the_real_unets_is_met_once(kind: str, config: dict, number: int) -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
    found = {layer: (original_name(layer), block_of(layer)) for layer in layers_of(unet)}
    expected = {
        (kinds[0], block, index)
        for kinds, depth in DEPTHS[kind].items()
        for block in kinds[1:]
        for index in range(depth)
    }
    assert len(found) == number
    assert Counter(key for _, key in found.values()) == Counter(expected)
    # What diffusers reads under that name of an original file is this layer.
    original_file = {there: torch.empty(0) for there in unet_names(unet).values()}
    prefixed = {f"model.diffusion_model.{there}": one for there, one in original_file.items()}
    converted = convert_ldm_unet_checkpoint(prefixed, dict(unet.config))
    for layer, (there, _) in found.items():
        for part in ("to_k", "to_v"):
            assert converted[f"{layer}.{part}.weight"] is original_file[f"{there}.{part}.weight"]


def test_a_layer_that_these_unets_do_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match=r"there is no layer transformer_blocks\.0\.attn2 in Stable Diffusion 1\.x"):
        block_of("transformer_blocks.0.attn2")


class Patcher:
    """What the node uses of ComfyUI's ``ModelPatcher``."""

    load_device = "cpu"

    def __init__(self, unet: nn.Module) -> None:
        named = nn.Module()
        for layer, module in unet.named_modules():
            if layer.endswith("attn2"):
                place = named
                for part in original_name(layer).split(".")[:-1]:
                    if not hasattr(place, part):
                        place.add_module(part, nn.Module())
                    place = getattr(place, part)
                place.add_module("attn2", module)
        self.model, self.model_options = SimpleNamespace(diffusion_model=named), {"transformer_options": {}}

    def clone(self) -> "Patcher":
        other = object.__new__(Patcher)
        other.model = self.model
        patches = self.model_options["transformer_options"].get("patches_replace", {}).get("attn2", {})
        other.model_options = {"transformer_options": {"patches_replace": {"attn2": dict(patches)}}}
        return other

    def get_model_object(self, name: str) -> Any:
        assert name == "model_sampling"
        return SimpleNamespace(percent_to_sigma=lambda percent: 10 * (1 - percent))

    def set_model_attn2_replace(self, patch: Callable, block: str, number: int, index: int) -> None:
        self.patches[(block, number, index)] = patch

    @property
    def patches(self) -> dict:
        options = self.model_options["transformer_options"]
        return options.setdefault("patches_replace", {}).setdefault("attn2", {})


class Clip:
    """What the node uses of ComfyUI's ``CLIP``: parentheses are weights unless they are escaped."""

    def __init__(self, backbone: UNetBackbone) -> None:
        self.backbone = backbone
        self.tokenizer = SimpleNamespace(clip_l=SimpleNamespace(tokenizer=backbone.tokenizers[0]))

    def tokenize(self, text: str) -> dict:
        escaped = text.replace(r"\(", "\1").replace(r"\)", "\2")
        self.text = escaped.replace("(", "").replace(")", "").replace("\1", "(").replace("\2", ")")
        ids, length = self.backbone.tokenizers[0](self.text).input_ids, self.backbone.tokenizers[0].model_max_length
        return {"l": [[(each, 1.0) for each in ids[at : at + length]] for at in range(0, len(ids), length)]}

    def encode_from_tokens_scheduled(self, tokens: dict) -> list:
        return [[self.backbone.encode_text([self.text]).prompt_embeds, {}]]


class Patched:
    """Attention of diffusers that calls a patch as ComfyUI's transformer block does."""

    def __init__(self, patch: Callable, options: dict) -> None:
        self.patch, self.options = patch, options

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, **rest: Any) -> Tensor:
        keys, values = attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states)
        options = {**self.options, "n_heads": attn.heads, "attn_precision": None}
        return attn.to_out[0](self.patch(attn.to_q(hidden_states), keys, values, options))


def attention(queries: Tensor, keys: Tensor, values: Tensor, heads: int, attn_precision: Any = None) -> Tensor:
    parts = [part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (queries, keys, values)]
    return nn.functional.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)


@pytest.fixture
def backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> UNetBackbone:
    for name in ("comfy", "comfy.ldm", "comfy.ldm.modules", "comfy.ldm.modules.attention"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["comfy.ldm.modules.attention"].optimized_attention = attention  # type: ignore[attr-defined]
    pipeline = tiny_sd(tmp_path)
    pipeline.unet = UNet2DConditionModel(**{**UNET, "layers_per_block": 2}, cross_attention_dim=16)
    return UNetBackbone(pipeline, "tiny")


def bank_file(backbone: UNetBackbone, folder: Path, name: str, seed: int, noun: str) -> Path:
    random = torch.Generator().manual_seed(seed)
    layers = backbone.text_layers().items()
    rows = {layer: torch.randn(2, linear.out_features, generator=random) for layer, linear in layers}
    metadata = {"class_noun": noun, "backbone_hash": backbone.fingerprint, "backbone": "tiny"}
    return ConceptBank(rows, metadata).save(folder / f"{name}.safetensors", torch.float32)


@pytest.fixture
def banks(backbone: UNetBackbone, tmp_path: Path) -> dict[str, Path]:
    rex, mittens = (bank_file(backbone, tmp_path, *each) for each in (("rex", 1, "dog"), ("cat1", 2, "cat")))
    return {"rex": rex, "mittens": mittens}


PROMPT = "a photo of a big <rex> (red) next to <mittens:0.6>"


def noise(backbone: UNetBackbone, text: Tensor) -> Tensor:
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).expand(len(text), -1, -1, -1)
    with torch.no_grad():
        return backbone.unet(latents, 500, text).sample


def noise_by_comfyui(backbone: UNetBackbone, patcher: Patcher, text: Tensor, options: dict) -> Tensor:
    before = backbone.unet.attn_processors
    replaced = {
        name: Patched(patcher.patches[block_of(name.removesuffix(".processor"))], options) if "attn2" in name else one
        for name, one in before.items()
    }
    backbone.unet.set_attn_processor(replaced)
    try:
        return noise(backbone, text)
    finally:
        backbone.unet.set_attn_processor(before)


@pytest.mark.parametrize("repeats", [1, 2])
@pytest.mark.parametrize("marks", [[1, 0], [0, 1], [0]])
def test_the_node_predicts_the_noise_that_our_own_hooks_predict(
    backbone: UNetBackbone, banks: dict[str, Path], marks: list[int], repeats: int
) -> None:
    typed = f"\n{banks['rex']}\n mittens={banks['mittens']} \n"
    node = NODE_CLASS_MAPPINGS["AtelierConcepts"]()
    model = Patcher(backbone.unet)
    patched, [[text, _]] = node.place(model, Clip(backbone), PROMPT, typed, 1.0)
    assert not model.patches and len(patched.patches) == len(layers_of(backbone.unet)) == 6

    ours = ConceptGenerator(backbone, {name: str(path) for name, path in banks.items()}, keep_context=False)
    plain, placements = ours.place(PROMPT)
    assert torch.equal(text, backbone.encode_text([plain]).prompt_embeds)
    without = backbone.encode_text([""]).prompt_embeds
    with blended(backbone.unet, [placements]):
        expected = noise(backbone, torch.cat([without, text]))
    given = torch.cat([text if mark == 0 else without for mark in marks]).repeat(1, repeats, 1)
    found = noise_by_comfyui(backbone, patched, given, {"cond_or_uncond": marks})
    torch.testing.assert_close(found, expected[[1 - mark for mark in marks]], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(expected[1], noise(backbone, text)[0], atol=1e-3)


def test_rows_are_those_of_the_generator_and_only_in_positive_parts(backbone: UNetBackbone, banks: dict) -> None:
    bank, layer = ConceptBank.load(banks["rex"]), layers_of(backbone.unet)[0]
    placements = [Placement(bank, [2, 5], 0.7)]
    keys = torch.randn(4, 8, bank.rows[f"k.{layer}"].shape[1])
    written = Blending(layer, placements, 8).written("k", keys, [0, 1])
    expected = BlendedText([placements, placements])(f"k.{layer}", keys[:2], keys[:2])
    assert torch.equal(written, torch.cat([expected, keys[2:]]))
    with pytest.raises(ValueError, match="the prompt has 8 tokens, but the concepts were placed in 5; connect"):
        Blending(layer, placements, 5).written("k", keys, [0])


def test_above_the_start_of_blending_a_layer_is_the_stock_one_bit_for_bit(backbone: UNetBackbone, banks: dict) -> None:
    patched, _ = Concepts().place(Patcher(backbone.unet), Clip(backbone), "a <rex>", str(banks["rex"]), 0.9)
    layer, patch = next(iter(patched.patches.items()))
    width = patch.placements[0].bank.rows[f"k.{patch.layer}"].shape[1]
    queries, keys, values = torch.randn(3, 2, 32, width)
    options = {"cond_or_uncond": [0, 1], "n_heads": 2, "attn_precision": None}
    stock = attention(queries, keys, values, 2)
    assert torch.equal(patch(queries, keys, values, {**options, "sigmas": torch.tensor([9.1])}), stock)
    assert not torch.equal(patch(queries, keys, values, {**options, "sigmas": torch.tensor([8.9])}), stock)


def test_a_patch_that_was_there_gets_the_blended_keys(backbone: UNetBackbone, banks: dict) -> None:
    model, seen = Patcher(backbone.unet), []
    key = block_of(layers_of(backbone.unet)[0])
    model.set_model_attn2_replace(lambda *given: seen.append(given) or given[0], *key)
    patched, _ = Concepts().place(model, Clip(backbone), "a <rex>", str(banks["rex"]), 1.0)
    patch = patched.patches[key]
    queries, keys, values = torch.randn(3, 1, 32, patch.placements[0].bank.rows[f"k.{patch.layer}"].shape[1])
    assert patch(queries, keys, values, {"cond_or_uncond": [0], "n_heads": 2}) is queries
    assert torch.equal(seen[0][1], patch.written("k", keys, [0])) and not torch.equal(seen[0][1], keys)


def test_what_does_not_fit_is_refused_in_a_sentence(backbone: UNetBackbone, banks: dict, tmp_path: Path) -> None:
    model, clip, node = Patcher(backbone.unet), Clip(backbone), Concepts()
    with pytest.raises(ValueError, match="ComfyUI reads .* give a prompt of at most 75 tokens, and no embedding:"):
        node.place(model, clip, "a <rex>" + " and a red dog" * 20, str(banks["rex"]))
    with pytest.raises(ValueError, match="connect the one of the checkpoint"):
        node.place(model, SimpleNamespace(tokenizer=object()), "a <rex>", str(banks["rex"]))
    other = UNetBackbone(tiny_sd(tmp_path / "other"), "other")
    path = bank_file(other, tmp_path, "felix", 0, "cat")
    with pytest.raises(
        RefusedFileError, match="the bank of felix was made for tiny, with 4 layers .* model has 6: load"
    ):
        node.place(model, clip, "a <felix>", str(path))
    with pytest.raises(ValueError, match="names <tom>, which|names <tom>, but the concepts given are: <rex>"):
        node.place(model, clip, "a <tom>", str(banks["rex"]))


def test_a_prompt_without_concepts_leaves_the_model_alone_and_a_new_bank_is_seen(
    backbone: UNetBackbone, banks: dict
) -> None:
    patched, _ = Concepts().place(Patcher(backbone.unet), Clip(backbone), "a dog", str(banks["rex"]))
    assert not patched.patches
    both = f"{banks['rex']}\nmittens={banks['mittens']}"
    assert len(Concepts.IS_CHANGED(both, prompt="a <rex>")) == 2
