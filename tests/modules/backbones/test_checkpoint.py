"""Variants of the weights, revisions, and another autoencoder."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from safetensors.torch import load_file, save_file

from src.modules.backbones.checkpoint import Checkpoint
from src.modules.backbones.unet import UNetBackbone
from tests.single_files import vae_weights, write_single_file
from tests.tiny import tiny_pixart, tiny_sd


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model with plain weights and a variant of them, whose output layer is zero."""
    pipeline = tiny_sd(tmp_path)
    pipeline.save_pretrained(tmp_path / "saved")
    torch.nn.init.zeros_(pipeline.unet.conv_out.weight)
    pipeline.to(dtype=torch.float16).save_pretrained(tmp_path / "saved", variant="fp16")
    return tmp_path / "saved"


def is_variant(backbone: UNetBackbone) -> bool:
    return not backbone.unet.conv_out.weight.any()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_half_precision_reads_half_the_bytes_where_they_are(folder: Path, dtype: str) -> None:
    half = dtype != "float32"
    backbone = UNetBackbone.from_pretrained(str(folder), dtype)
    assert is_variant(backbone) is half and backbone.dtype == getattr(torch, dtype)
    plain = UNetBackbone.from_pretrained(str(folder))
    assert backbone.fingerprint == plain.fingerprint
    assert {name for name in plain.parts if plain.parts[name] != backbone.parts[name]} == (
        {"unet", "vae", "text_encoder"} if half else set()
    )
    assert UNetBackbone.content({"path": str(folder), "dtype": dtype}) == backbone.parts
    stock = DiffusionPipeline.from_pretrained(folder, dtype=backbone.dtype, variant="fp16" if half else None)
    weights = stock.unet.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in backbone.unet.state_dict().items())


def test_a_variant_that_is_asked_for_is_read(folder: Path) -> None:
    backbone = UNetBackbone.from_pretrained(str(folder), variant="fp16")
    assert is_variant(backbone) and backbone.dtype == torch.float32
    assert backbone.overrides["backbone.variant"] == "fp16"
    with pytest.raises(ValueError, match=r"saved has no files of backbone\.variant=ema, such as \*\.ema\.\*"):
        UNetBackbone.first_look({"path": str(folder), "variant": "ema"})


def test_a_folder_of_one_variant_alone_is_read(folder: Path) -> None:
    plain = [path for path in folder.rglob("*.safetensors") if "fp16" not in path.name]
    for path in plain:
        path.unlink()
    for dtype in ("float32", "float16"):
        backbone = UNetBackbone.from_pretrained(str(folder), dtype)
        assert len(plain) == 3 and is_variant(backbone) and backbone.dtype == getattr(torch, dtype)


def test_options_that_do_not_go_with_a_model_are_said(folder: Path, tmp_path: Path) -> None:
    file = write_single_file(tiny_sd(tmp_path), tmp_path / "model.safetensors")
    for given, told in (
        ({"path": str(folder), "revision": "main"}, r"backbone\.revision is for a model of the hub, not for .*saved"),
        ({"path": str(file), "revision": "main"}, r"backbone\.revision is for a model of the hub, not for .*model"),
        ({"path": str(file), "variant": "fp16"}, r"backbone\.variant is for a model of a folder or the hub, not for"),
    ):
        with pytest.raises(ValueError, match=told):
            UNetBackbone.first_look(given)


def test_a_hub_id_is_asked_for_its_revision_and_the_right_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(path: str, **given: object) -> str:
        asked.append({"path": path, **given})
        return str(folder)

    monkeypatch.setattr(DiffusionPipeline, "download", download)
    backbone = UNetBackbone.from_pretrained("some/model", "bfloat16", revision="v2")
    assert is_variant(backbone) and backbone.name == "some/model"
    assert backbone.overrides == {
        "backbone.path": "some/model", "backbone.dtype": "bfloat16", "backbone.revision": "v2"
    }  # fmt: skip
    first = {"path": "some/model", "variant": "fp16", "revision": "v2", "use_safetensors": True}
    assert asked[0] == {**first, "local_files_only": False} and asked[-1] == {**first, "local_files_only": True}
    asked.clear()
    assert not is_variant(UNetBackbone.from_pretrained("some/model"))
    assert {one["variant"] for one in asked} == {one["revision"] for one in asked} == {None}


def other_vae(folder: Path, kind: str) -> Path:
    torch.manual_seed(1)
    vae = tiny_sd(folder).vae
    torch.nn.init.ones_(vae.post_quant_conv.bias)
    vae.save_pretrained(folder / "vae")
    weights = vae.state_dict() if kind == "diffusers" else vae_weights(vae)
    named = {f"first_stage_model.{name}" if kind == "whole" else name: one for name, one in weights.items()}
    save_file({name: one.contiguous().clone() for name, one in named.items()}, folder / "other.safetensors")
    return folder / ("vae" if kind == "folder" else "other.safetensors")


@pytest.mark.parametrize("kind", ["folder", "diffusers", "original", "whole"])
@pytest.mark.parametrize("whole", [False, True])
def test_another_autoencoder_takes_the_place_of_the_models_own(folder: Path, kind: str, whole: bool) -> None:
    (folder.parent / "other").mkdir()
    place = other_vae(folder.parent / "other", kind)
    given = {"path": str(folder)}
    if whole:
        file = write_single_file(tiny_sd(folder.parent), folder.parent / "model.safetensors")
        given = {"path": str(file), "config": str(folder)}
    own, backbone = (UNetBackbone.from_pretrained(**given, **more) for more in ({}, {"vae": str(place)}))
    expected = AutoencoderKL.from_pretrained(folder.parent / "other" / "vae").state_dict()
    assert backbone.vae is backbone.pipeline.vae and not backbone.vae.training
    assert all(torch.equal(expected[name], tensor) for name, tensor in backbone.vae.state_dict().items())
    assert backbone.vae.config.scaling_factor == own.vae.config.scaling_factor
    assert backbone.fingerprint == own.fingerprint
    assert {name for name in own.parts if own.parts[name] != backbone.parts[name]} == {"vae"}
    assert backbone.autoencoder_identity != own.autoencoder_identity and backbone.identity != own.identity
    assert backbone.overrides["backbone.vae"] == str(place)
    assert UNetBackbone.content({**given, "vae": str(place)}) == backbone.parts


def damaged(folder: Path) -> list[tuple[Callable[[], Path], str]]:
    def changed(**settings: object) -> Path:
        path = other_vae(folder, "folder") / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **settings}), encoding="utf-8")
        return path.parent

    def wide() -> Path:
        weights = load_file(other_vae(folder, "original"))
        weights["decoder.conv_in.weight"] = torch.zeros(8, 16, 3, 3)
        save_file(weights, folder / "other.safetensors")
        return folder / "other.safetensors"

    return [
        (lambda: changed(_class_name="AutoencoderTiny"), "holds AutoencoderTiny, but an AutoencoderKL is needed"),
        (
            lambda: changed(latent_channels=16),
            "has 16 channels of latents, 8 times smaller .* model has 4, 8",
        ),
        (wide, "has 16 channels of latents"),
        (lambda: folder.parent / "saved" / "unet" / "diffusion_pytorch_model.safetensors", r"but backbone\.vae takes"),
        (lambda: folder.parent / "saved" / "unet", "holds UNet2DConditionModel"),
        (lambda: folder.parent, r"there is no .*config\.json, which is the configuration of an autoencoder"),
    ]


def test_what_is_no_autoencoder_of_this_model_is_said(folder: Path) -> None:
    (folder.parent / "other").mkdir()
    for make, told in damaged(folder.parent / "other"):
        with pytest.raises(ValueError, match=told):
            Checkpoint(str(folder), vae=str(make())).load()


def test_pixart_takes_variants_too(tmp_path: Path) -> None:
    tiny_pixart(tmp_path).to(dtype=torch.float16).save_pretrained(tmp_path / "saved", variant="fp16")
    checkpoint = Checkpoint(str(tmp_path / "saved"), "bfloat16")
    assert checkpoint.load().transformer.dtype == torch.bfloat16 and "transformer" in checkpoint.parts()
