"""One file in the original layout is the same model as its folder in diffusers' layout."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from src.data.banks import CONCEPT_BANK
from src.data.request import Request
from src.modules.backbones import single_file
from src.modules.backbones.architectures import SD1, SD2, SDXL, Architecture, write_clip_words
from src.modules.backbones.pixart import PixArtBackbone
from src.modules.backbones.single_file import architecture_of
from src.modules.backbones.unet import UNetBackbone
from src.modules.latexblend.bank import ConceptBank
from src.modules.latexblend.generator import ConceptGenerator
from tests.single_files import unet_names, write_single_file
from tests.tiny import tiny_sd, tiny_sdxl

MAKERS: dict[str, tuple[Callable[..., Any], bool]] = {
    "sd1": (tiny_sd, False),
    "sd2": (tiny_sd, True),
    "sdxl": (tiny_sdxl, False),
}
STEPS = {"num_inference_steps": 2, "guidance_scale": 3.0}


def saved(folder: Path, kind: str = "sd1", **extra: torch.Tensor) -> tuple[Path, Path]:
    """A tiny model as a folder, and as a file."""
    maker, open_clip = MAKERS[kind]
    pipeline = maker(folder)
    pipeline.save_pretrained(folder / "saved")
    return folder / "saved", write_single_file(pipeline, folder / "model.safetensors", open_clip, **extra)


@pytest.fixture(params=MAKERS)
def both(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    return saved(tmp_path, request.param)


def pixels(backbone: UNetBackbone, **banks: str) -> np.ndarray:
    for module in (backbone.denoiser, backbone.vae, *backbone.text_encoders):
        for weights in module.parameters():  # Rounding depends on where a mapped file puts a tensor in memory.
            weights.data = weights.data.clone()
    requests = [Request("a <rex> on the grass" if banks else "a dog on the grass", 0), Request("a red cat", 1)]
    return np.stack([np.asarray(one) for one in ConceptGenerator(backbone, banks, STEPS).sample(requests)])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_file_is_its_folder_bit_for_bit(both: tuple[Path, Path], dtype: str) -> None:
    folder, file = both
    ours, expected = (
        UNetBackbone.from_pretrained(str(folder), dtype),
        UNetBackbone.from_pretrained(str(file), dtype, config=str(folder)),
    )
    assert ours.fingerprint == expected.fingerprint and expected.name == "model.safetensors"
    assert expected.known_words is None and expected.dtype == ours.dtype
    for part, module in ours.pipeline.components.items():
        if isinstance(module, torch.nn.Module):
            weights = module.state_dict()
            loaded = expected.pipeline.components[part].state_dict()
            assert loaded.keys() == weights.keys() and all(torch.equal(loaded[n], weights[n]) for n in weights)
    assert dtype != "float32" or np.array_equal(pixels(ours), pixels(expected))


def test_a_bank_of_the_folder_fits_the_file_and_draws_the_same(tmp_path: Path) -> None:
    folder, file = saved(tmp_path)
    first = UNetBackbone.from_pretrained(str(folder))
    rows = {name: torch.randn(2, one.out_features) for name, one in first.text_layers().items()}
    bank = ConceptBank(rows, {"class_noun": "dog", "backbone_hash": first.fingerprint})
    bank.save(tmp_path / "rex.safetensors")
    second = UNetBackbone.from_pretrained(str(file), config=str(folder))
    drawn = [pixels(one, rex=str(tmp_path / "rex.safetensors")) for one in (first, second)]
    assert np.array_equal(*drawn) and not np.array_equal(drawn[0], pixels(first))


def test_content_follows_the_file_and_its_configurations(tmp_path: Path) -> None:
    folder, file = saved(tmp_path)
    given = {"path": str(file), "config": str(folder)}
    before = UNetBackbone.content(given)
    backbone = UNetBackbone.from_pretrained(**given)
    assert backbone.parts == before and {"unet", "vae", "text_encoder", "tokenizer", "scheduler"} <= before.keys()
    assert backbone.overrides == {
        "backbone.path": str(file), "backbone.config": str(folder), "backbone.dtype": "float32"
    }  # fmt: skip
    moved = file.rename(tmp_path / "moved.safetensors")
    assert UNetBackbone.content({**given, "path": str(moved)}) == before
    schedule = folder / "scheduler" / "scheduler_config.json"
    schedule.write_text(schedule.read_text(encoding="utf-8").replace("0.02", "0.012"), encoding="utf-8")
    other = UNetBackbone.content({**given, "path": str(moved)})
    assert {name for name in before if before[name] != other[name]} == {"scheduler"}
    weights = load_file(moved)
    weights["model.diffusion_model.out.2.bias"] += 1
    save_file(weights, moved)
    last = UNetBackbone.content({**given, "path": str(moved)})
    assert {name for name in other if other[name] != last[name]} == {"unet", "vae", "text_encoder"}


def other_files(folder: Path) -> dict[str, tuple[dict[str, torch.Tensor], dict[str, str]]]:
    whole = load_file(saved(folder)[1])
    first, one = "model.diffusion_model.input_blocks.0.0.weight", torch.zeros(1)
    return {
        "a LoRA": ({"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": one}, {}),
        r"what was learnt here.*give it as bank\.NAME=FILE": ({"k.a": one}, {"format": CONCEPT_BANK.format}),
        "an autoencoder alone": (
            {n.removeprefix("first_stage_model."): t for n, t in whole.items() if "first" in n},
            {},
        ),
        "a UNet without its text": ({n: t for n, t in whole.items() if "first_stage" not in n}, {}),
        "a model of the kind sd35_large": ({"joint_blocks.37.x_block.mlp.fc1.weight": one}, {}),
        "a model of the kind flux-schnell": ({"double_blocks.0.img_attn.norm.key_norm.scale": one}, {}),
        "a model of the kind inpainting": ({**whole, first: torch.zeros(16, 9, 3, 3)}, {}),
        "one part of a folder in diffusers' layout": ({"down_blocks.0.resnets.0.conv1.weight": one}, {}),
        "nothing that diffusers knows": ({"weight": one}, {}),
    }


def test_what_is_no_whole_model_is_said_from_the_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = other_files(tmp_path)
    monkeypatch.setattr("diffusers.loaders.single_file.load_single_file_checkpoint", lambda *_, **__: 1 / 0)
    for told, (tensors, metadata) in files.items():
        save_file(tensors, tmp_path / "other.safetensors", metadata)
        settings = {"path": str(tmp_path / "other.safetensors")}
        for look in (UNetBackbone.first_look, lambda given: UNetBackbone.from_pretrained(**given)):
            with pytest.raises(ValueError, match=rf"holds {told}.*, but backbone\.path takes a whole text-to-image"):
                look(settings)
    (tmp_path / "model.ckpt").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"model\.ckpt is no \.safetensors; weights in another format"):
        UNetBackbone.from_pretrained(str(tmp_path / "model.ckpt"))
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "other.safetensors").read_bytes()[:-2])
    with pytest.raises(ValueError, match=r"cut\.safetensors cannot be read as \.safetensors .*may be truncated"):
        UNetBackbone.from_pretrained(str(tmp_path / "cut.safetensors"))


def test_configurations_of_another_model_are_said(tmp_path: Path) -> None:
    folder, file = saved(tmp_path)
    with pytest.raises(
        ValueError, match=r"is built otherwise than stable-diffusion-v1-5/.*backbone\.config=FOLDER.*unet is \(16"
    ):
        UNetBackbone.from_pretrained(str(file))
    tiny_sdxl(tmp_path / "xl").save_pretrained(tmp_path / "xl" / "saved")
    with pytest.raises(ValueError, match=r"is a Stable Diffusion 1\.x, but backbone\.config=.* StableDiffusionXLPipel"):
        UNetBackbone.from_pretrained(str(file), config=str(tmp_path / "xl" / "saved"))
    with pytest.raises(ValueError, match="goes with one file of weights, and .*saved has its own"):
        UNetBackbone.from_pretrained(str(folder), config=str(folder))
    weights = load_file(file)
    del weights["first_stage_model.decoder.conv_in.bias"]
    save_file(weights, file)
    with pytest.raises(ValueError, match=r"is built otherwise.*\(weights are missing\)"):
        UNetBackbone.from_pretrained(str(file), config=str(folder))
    saved(tmp_path)
    weights = load_file(file)
    del weights["cond_stage_model.transformer.text_model.final_layer_norm.bias"]
    save_file(weights, file)
    with pytest.raises(ValueError, match=r"is built otherwise.*final_layer_norm\.bias of the text_encoder is missing"):
        UNetBackbone.from_pretrained(str(file), config=str(folder))
    with pytest.raises(ValueError, match="but PixArtBackbone takes a"):
        PixArtBackbone.from_pretrained(str(saved(tmp_path)[1]), config=str(folder))


def test_clips_own_words_are_at_hand(tmp_path: Path) -> None:
    write_clip_words(tmp_path, "!")
    ours, theirs = CLIPTokenizer.from_pretrained(tmp_path), SimpleTokenizer()
    assert len(ours) == 49408 and (ours.pad_token_id, ours.eos_token_id, ours.model_max_length) == (0, 49407, 77)
    assert ours("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    for text in ("A close-up, detailed photo of 12 cafés", "naïve 日本語 ☕ a_b <|x|> don't", "sks dog's", ""):
        found = ours(text).input_ids
        assert found == theirs(text)[0][: len(found)].tolist()


@pytest.mark.parametrize(
    ("kind", "weights", "predicts"),
    [
        (SD1, 859_520_964, "epsilon"),
        (SD2, 865_910_724, "v_prediction"),
        (SDXL, 2_567_463_684, "epsilon"),
    ],
)
def test_published_models_have_their_size(tmp_path: Path, kind: Architecture, weights: int, predicts: str) -> None:
    kind.write(tmp_path)
    config = UNet2DConditionModel.load_config(tmp_path, subfolder="unet")
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
    names = unet_names(unet)
    assert names.keys() == unet.state_dict().keys()
    converted = convert_ldm_unet_checkpoint({f"model.diffusion_model.{one}": one for one in names.values()}, config)
    assert converted == names
    assert sum(one.numel() for one in unet.parameters()) == weights
    _, schedule = kind.scheduler
    assert schedule.get("prediction_type", "epsilon") == predicts


def test_a_file_that_predicts_velocity_says_so(tmp_path: Path) -> None:
    _, file = saved(tmp_path, "sdxl", v_pred=torch.zeros(0))
    _, schedule = architecture_of(file).scheduler
    assert schedule["prediction_type"] == "v_prediction" and not schedule["rescale_betas_zero_snr"]
    _, file = saved(tmp_path, "sdxl", v_pred=torch.zeros(0), ztsnr=torch.zeros(0))
    assert architecture_of(file).scheduler[1]["rescale_betas_zero_snr"]


def gives_noise_back(unet: UNet2DConditionModel) -> None:
    """Change a tiny UNet so that it predicts the noise of a noisy image: what it reads leaves by the last shortcut."""
    channels, last = unet.config.in_channels, unet.up_blocks[-1].resnets[-1]
    width = unet.conv_in.out_channels
    for weights in (*unet.conv_in.parameters(), *unet.conv_out.parameters(), *last.conv2.parameters()):
        weights.zero_()
    for weights in last.conv_shortcut.parameters():
        weights.zero_()
    last.conv_shortcut.weight[:, -width:, 0, 0] = torch.eye(width)
    for at in range(channels):
        # silu(x) - silu(-x) is x.
        for sign, channel in ((1.0, at), (-1.0, channels + at)):
            unet.conv_in.weight[channel, at, 1, 1] = sign
            unet.conv_out.weight[at, channel, 1, 1] = sign


@pytest.mark.parametrize(("noise", "kind", "side"), [(True, "epsilon", 64), (False, "v_prediction", 96)])
def test_a_file_of_stable_diffusion_2_is_asked_what_it_predicts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noise: bool, kind: str, side: int
) -> None:
    pipeline = tiny_sd(tmp_path)
    pipeline.unet.register_to_config(sample_size=96)
    if noise:
        with torch.no_grad():
            gives_noise_back(pipeline.unet)
    file = write_single_file(pipeline, tmp_path / "model.safetensors", open_clip=True)
    parts = {part: pipeline.components[part].config for part in SD2.modules}
    parts["text_encoder"] = parts["text_encoder"].to_dict()
    small = {part: (name, dict(parts[part])) for part, (name, _) in SD2.modules.items()}
    monkeypatch.setitem(single_file.TEXT, "cond_stage_model.model.", replace(SD2, modules=small))
    loaded = single_file.SingleFile(file).load(torch.float32)
    assert loaded.scheduler.config.prediction_type == kind and loaded.unet.config.sample_size == side
    assert UNetBackbone(loaded, "x").noise_scheduler.config.prediction_type == kind
