"""LoRAs of others act in a model's weights, in every format that they come in."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

from src.data.request import Request
from src.modules.backbones.pixart import PixArtBackbone
from src.modules.backbones.unet import UNetBackbone
from src.modules.latexblend.bank import ConceptBank
from src.modules.latexblend.generator import ConceptGenerator
from src.modules.rivals.dreambooth_lora import add_lora
from tests.single_files import write_single_file
from tests.tiny import tiny_pixart, tiny_sd, tiny_sdxl

RANK, ALPHA = 2, 4.0
LAYERS = {
    "unet": "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k",
    "text_encoder": "encoder.layers.1.self_attn.q_proj",
}
OTHERS = (
    ("unet", "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0"),
    ("unet", "mid_block.attentions.0.transformer_blocks.0.ff.net.2"),
    # Diffusers tells kohya's text encoders by their output layers, which every file of kohya's has.
    ("text_encoder", "encoder.layers.1.self_attn.out_proj"),
    ("text_encoder", "encoder.layers.0.mlp.fc1"),
)
STEPS = {"num_inference_steps": 2, "guidance_scale": 3.0}
Weights = dict[str, torch.Tensor]


@pytest.fixture(params=[tiny_sd, tiny_sdxl])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    request.param(tmp_path).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def factors(backbone: UNetBackbone) -> dict[tuple[str, str], tuple[torch.Tensor, torch.Tensor]]:
    """Down and up of the changes of some layers."""
    torch.manual_seed(1)
    found = {}
    for part, name in (*LAYERS.items(), *OTHERS):
        layer = dict(backbone.pipeline.components[part].named_modules())[name]
        found[part, name] = torch.randn(RANK, layer.in_features), torch.randn(layer.out_features, RANK)
    return found


def diffusers_names(made: dict) -> tuple[Weights, dict[str, Any]]:
    """As ``save_lora_weights`` writes them; alpha is the rank, as it is where nothing else is said."""
    found = {}
    for (part, name), (down, up) in made.items():
        there = name.replace("encoder.", "text_model.encoder.", 1) if part == "text_encoder" else name
        found |= {f"{part}.{there}.lora_A.weight": down, f"{part}.{there}.lora_B.weight": up * ALPHA / RANK}
    return found, {}


def kohya_names(made: dict) -> tuple[Weights, dict[str, Any]]:
    prefixes = {"unet": "lora_unet", "text_encoder": "lora_te_text_model"}
    found = {}
    for (part, name), (down, up) in made.items():
        there = f"{prefixes[part]}_{name.replace('.', '_')}"
        found |= {f"{there}.lora_down.weight": down, f"{there}.lora_up.weight": up}
        found[f"{there}.alpha"] = torch.tensor(ALPHA)
    return found, {}


def peft_names(made: dict) -> tuple[Weights, dict[str, Any]]:
    """As ``PeftModel.save_pretrained`` writes them; peft wraps one model, the UNet."""
    found = {}
    for (part, name), (down, up) in made.items():
        if part == "unet":
            there = f"base_model.model.{name}"
            found |= {f"{there}.lora_A.weight": down, f"{there}.lora_B.weight": up}
    return found, {"r": RANK, "lora_alpha": ALPHA, "target_modules": ["to_k"]}


FORMATS: dict[str, Callable[[dict], tuple[Weights, dict[str, Any]]]] = {
    "diffusers": diffusers_names,
    "kohya": kohya_names,
    "peft": peft_names,
}


def written(path: Path, kind: str, made: dict) -> Path:
    weights, config = FORMATS[kind](made)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)
    if config:
        path.with_name("adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return path


def load(folder: Path, *loras: Any, **given: Any) -> UNetBackbone:
    return UNetBackbone.from_pretrained(str(folder), lora=list(loras), **given)


def pixels(backbone: UNetBackbone, **banks: ConceptBank) -> np.ndarray:
    requests = [Request("a <rex> on the grass" if banks else "a dog on the grass", 0)]
    return np.asarray(ConceptGenerator(backbone, banks, STEPS).sample(requests)[0])


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_adds_the_scaled_product_to_the_weights(
    folder: Path, tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "src.modules.backbones.lora")
    plain = load(folder)
    made = factors(plain)
    path = written(tmp_path / "style.safetensors", kind, made)
    backbone = load(folder, {"path": str(path), "scale": 0.5})
    number = 2 * len(made) if kind != "peft" else 2 * sum(part == "unet" for part, _ in made)
    assert f"{number} of the {number} tensors of {path} act, at scale 0.5" in caplog.text
    changed = {(part, f"{name}.weight") for part, name in made if kind != "peft" or part == "unet"}
    for part in LAYERS:
        module, before = backbone.pipeline.components[part], plain.pipeline.components[part].state_dict()
        after = module.state_dict()
        assert after.keys() == before.keys() and not module.training
        assert not any(weights.requires_grad for weights in module.parameters())
        assert type(dict(module.named_modules())[LAYERS[part]]) is torch.nn.Linear
        for name in after:
            if (part, name) not in changed:
                assert torch.equal(after[name], before[name])
                continue
            down, up = made[part, name.removesuffix(".weight")]
            expected = before[name] + 0.5 * ALPHA / RANK * up @ down
            assert torch.allclose(after[name], expected, atol=1e-5) and not torch.allclose(after[name], before[name])


def test_no_lora_is_the_stock_model_bit_for_bit(folder: Path, tmp_path: Path) -> None:
    plain, path = load(folder), tmp_path / "style.safetensors"
    written(path, "kohya", factors(plain))
    stock = DiffusionPipeline.from_pretrained(folder)
    expected = np.asarray(
        stock("a dog on the grass", **STEPS, height=64, width=64, generator=[torch.Generator().manual_seed(0)]).images[
            0
        ]
    )
    for backbone in (plain, load(folder, {"path": str(path), "scale": 0.0})):
        assert np.array_equal(pixels(backbone), expected)
    assert "lora" not in plain.parts and not np.array_equal(pixels(load(folder, str(path))), expected)


def test_loras_belong_to_the_identity_and_not_to_the_fingerprint(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = load(folder)
    path = written(tmp_path / "style.safetensors", "kohya", factors(plain))
    one = {"path": str(path), "scale": 0.5}
    backbones = [plain, load(folder, one), load(folder, str(path)), load(folder, one, one)]
    assert len({each.identity for each in backbones}) == 4 and len({each.fingerprint for each in backbones}) == 1
    assert load(folder, one, dtype="bfloat16").fingerprint == plain.fingerprint
    assert UNetBackbone.content({"path": str(folder), "lora": [one]}) == backbones[1].parts
    assert backbones[1].overrides["backbone.lora"] == (one,) and "backbone.lora" not in plain.overrides
    moved = path.rename(tmp_path / "moved.safetensors")
    assert load(folder, {"path": str(moved), "scale": 0.5}).identity == backbones[1].identity
    rows = {name: torch.randn(2, layer.out_features) for name, layer in plain.text_layers().items()}
    told = {"class_noun": "dog", "backbone_hash": plain.fingerprint, "backbone_content": backbones[1].content_hash}
    bank = ConceptBank(rows, told)
    pixels(backbones[1], rex=bank)
    assert "the bank of rex" not in caplog.text
    pixels(plain, rex=bank)
    assert "the bank of rex was trained with other files" in caplog.text and "LoRAs" in caplog.text


def test_a_rival_may_add_its_own_lora_beside(folder: Path, tmp_path: Path) -> None:
    path = written(tmp_path / "style.safetensors", "diffusers", factors(load(folder)))
    backbone = load(folder, str(path), str(path))
    for module in (backbone.denoiser, backbone.text_encoders[0]):
        add_lora(module, ["to_k", "q_proj"], 2)


def test_a_single_file_takes_loras_too(tmp_path: Path) -> None:
    pipeline = tiny_sd(tmp_path)
    pipeline.save_pretrained(tmp_path / "saved")
    file = write_single_file(pipeline, tmp_path / "model.safetensors")
    path = written(tmp_path / "style.safetensors", "kohya", factors(load(tmp_path / "saved")))
    one, two = load(tmp_path / "saved", str(path)), load(file, str(path), config=str(tmp_path / "saved"))
    ours, theirs = one.unet.state_dict(), two.unet.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def other_files(folder: Path, good: Path) -> dict[str, tuple[Any, Any]]:
    name = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    wide = {f"{name}.lora_down.weight": torch.zeros(2, 2048), f"{name}.lora_up.weight": torch.zeros(32, 2)}
    flux = {"transformer.x.lora_A.weight": torch.zeros(2, 8), "transformer.x.lora_B.weight": torch.zeros(8, 2)}
    thin = {n: torch.zeros(2, 7) if "attn1" in n and "down" in n else t for n, t in load_file(good).items()}
    return {
        r"is a LoRA of SDXL \(its cross-attention reads text of width 2048\)": (wide, None),
        r"no tensor of .*other\.safetensors fits this model|does not fit this": (flux, None),
        "does not fit this Stable Diffusion": (thin, None),
        "is a DoRA": ({**load_file(good), f"{name}.dora_scale": torch.ones(1)}, None),
        r"holds nothing that diffusers knows, but backbone\.lora takes LoRAs": ({"weight": torch.zeros(1)}, None),
        "there is no LoRA at nowhere": (None, "nowhere.safetensors"),
        r"backbone\.lora holds .*write each as \{path: FILE, scale: 0\.8\}": (None, {"path": str(good), "weight": 1}),
        r"backbone\.lora holds": (None, {"path": str(good), "scale": True}),
    }


def test_what_is_no_lora_of_this_model_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_sd(tmp_path).save_pretrained(tmp_path / "saved")
    good = written(tmp_path / "good.safetensors", "kohya", factors(load(tmp_path / "saved")))
    for told, (tensors, given) in other_files(tmp_path, good).items():
        if tensors is not None:
            save_file(tensors, tmp_path / "other.safetensors")
        settings = {"path": str(tmp_path / "saved"), "lora": [given or str(tmp_path / "other.safetensors")]}
        with pytest.raises(ValueError, match=told):
            UNetBackbone.from_pretrained(**settings)
        if "fit" not in told:  # All others are said before weights are read.
            with pytest.raises(ValueError, match=told):
                UNetBackbone.first_look(settings)
    tiny_pixart(tmp_path / "pixart").save_pretrained(tmp_path / "pixart" / "saved")
    with pytest.raises(ValueError, match="a PixArtSigmaPipeline takes none"):
        PixArtBackbone.from_pretrained(str(tmp_path / "pixart" / "saved"), lora=[str(good)])
