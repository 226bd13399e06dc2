"""Published folders of Switti: every tensor is applied, at real size too, and what is wrong is said."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from src.modules.next_scale.switti.autoencoder import VQVAE
from src.modules.next_scale.switti.convert import DERIVED, load_pipeline, load_transformer, load_vqvae, renamed
from src.modules.next_scale.switti.transformer import SCHEDULES, SwittiTransformer
from tests.modules.next_scale.golden import FOLDER
from tests.modules.next_scale.tiny_switti import SIDES, tiny_pipeline, tiny_transformer, tiny_vqvae

KEYS = FOLDER / "switti_keys.txt"
CONFIG = {"depth": 2, "embed_dim": 32, "num_heads": 2, "patch_nums": SIDES, "use_ar": False, "use_crop_cond": True}


def published_name(name: str) -> str:
    """The inverse of what is tested, spelled out."""
    side = "downsample" if name.startswith("encoder") else "upsample"
    name = name.replace("resampling", f"{side}.conv").replace("quantize.phi", "quantize.quant_resi.qresi_ls")
    return re.sub(r"ada_lin", "ada_lin.1", name.replace("head_ada_lin", "head_nm.ada_lin"))


def publish(model: nn.Module, folder: Path, config: dict[str, object] | None = None) -> Path:
    """Write a folder such as its authors do."""
    tensors = {published_name(name): tensor for name, tensor in model.state_dict().items()}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config or {}), encoding="utf-8")
    save_file({**tensors, "lvl_1L": torch.zeros(1, 30, dtype=torch.int64)}, folder / "model.safetensors")
    return folder


def small_vqvae(**changes: object) -> VQVAE:
    return tiny_vqvae(base_channels=32, norm_num_groups=32, **changes)


def same(first: nn.Module, second: nn.Module) -> bool:
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def official_keys() -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    """Names and shapes of the published 512-pixel transformer, all 30 blocks, and of the VQ-VAE, first blocks only."""
    parts: list[dict[str, list[int]]] = [{}, {}]
    for line in KEYS.read_text(encoding="utf-8").splitlines():
        match = re.match(r"([\w.]+) (\[[\d, ]+\])$", line)
        if match:
            name, shape = match[1], json.loads(match[2])
            block = name.startswith("blocks.0.")
            copies = [name.replace("s.0.", f"s.{index}.", 1) for index in range(30)] if block else [name]
            parts[name.startswith(("encoder", "decoder", "quant", "post_quant"))] |= dict.fromkeys(copies, shape)
    return parts[0], parts[1]


def shapes(model: nn.Module) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in model.state_dict().items()}


def test_every_published_tensor_has_its_place_at_full_size() -> None:
    transformer, vqvae = official_keys()
    with torch.device("meta"):
        ours, vae_shapes = shapes(SwittiTransformer()), shapes(VQVAE())
    assert ours == {renamed(name): shape for name, shape in transformer.items() if name not in DERIVED}
    assert len(transformer) == 705
    # Of the VQ-VAE's 324 tensors the list leaves out second blocks, which are alike.
    listed = {renamed(name): shape for name, shape in vqvae.items() if name not in DERIVED}
    assert {name: vae_shapes[name] for name in listed} == listed
    left_out = re.compile(r"block[._][12]\.")
    assert all(left_out.search(name) for name in vae_shapes.keys() - listed.keys())
    assert len(vae_shapes) == 324 - len(DERIVED & vqvae.keys())


def test_full_size_is_full_size() -> None:
    with torch.device("meta"):
        model, large, vae = SwittiTransformer(), SwittiTransformer(sides=SCHEDULES[1024], use_ar=True), VQVAE()
    assert sum(p.numel() for p in model.parameters()) == 2_470_518_256
    assert [model.num_tokens, large.num_tokens] == [2240, 9451]
    assert sum(p.numel() for p in vae.encoder.parameters()) == 44_107_872
    assert sum(p.numel() for p in vae.decoder.parameters()) == 64_653_923


@pytest.mark.parametrize("use_ar", [False, True])
@pytest.mark.parametrize("use_crop_cond", [False, True])
def test_a_published_transformer_becomes_ours(tmp_path: Path, use_ar: bool, use_crop_cond: bool) -> None:
    variant = {"use_ar": use_ar, "use_crop_cond": use_crop_cond}
    model = tiny_transformer(**variant)
    loaded = load_transformer(publish(model, tmp_path / "transformer", {**CONFIG, **variant}))
    assert same(loaded, model)
    assert {name: loaded.config[name] for name in variant} == variant
    assert (loaded.config.latent_channels, loaded.config.num_codes) == (4, 16)


def test_size_and_heads_follow_from_depth_and_resolution(tmp_path: Path) -> None:
    model = tiny_transformer(width=128, num_heads=2, sides=SCHEDULES[256])
    config = {"depth": 2, "reso": 256, "use_ar": False, "use_crop_cond": True, "rope_theta": 500}
    loaded = load_transformer(publish(model, tmp_path / "transformer", config))
    assert same(loaded, model)
    assert (loaded.config.num_heads, loaded.config.rope_theta) == (2, 500.0)


@pytest.mark.parametrize("changes", [{}, {"channel_multipliers": (1, 1, 2), "layers_per_block": 2, "num_codes": 9}])
def test_a_published_tokenizer_becomes_ours(tmp_path: Path, changes: dict[str, object]) -> None:
    model = small_vqvae(**changes)
    assert same(load_vqvae(publish(model, tmp_path / "vae")), model)


def test_weights_in_torchs_format_are_read_without_running_code(tmp_path: Path) -> None:
    model, folder = small_vqvae(), tmp_path / "vae"
    safe = publish(model, folder) / "model.safetensors"
    torch.save(load_file(safe), folder / "pytorch_model.bin")
    safe.unlink()
    assert same(load_vqvae(folder), model)
    torch.save({"encoder": Harm()}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="damaged, cut short, or no file of weights"):
        load_vqvae(folder)


class Harm:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.system, ("echo code in a checkpoint ran",)


def test_the_four_parts_become_a_pipeline(tmp_path: Path) -> None:
    made = tiny_pipeline(tmp_path)
    folders = {
        "transformer": publish(made.transformer, tmp_path / "transformer", CONFIG),
        "vae": publish(small_vqvae(), tmp_path / "vae"),
        "text_encoder": tmp_path / "first",
        "text_encoder_2": tmp_path / "second",
    }
    for name, words in (("text_encoder", made.tokenizer), ("text_encoder_2", made.tokenizer_2)):
        getattr(made, name).save_pretrained(folders[name])
        words.save_pretrained(folders[name])
    paths = {name: str(folder) for name, folder in folders.items()}
    loaded = load_pipeline(**paths, dtype="float32")
    loaded.set_progress_bar_config(disable=True)
    made.register_modules(vae=small_vqvae())
    drawn = [
        each("a red dog", output_type="latent", generator=torch.Generator().manual_seed(0)).images
        for each in (made, loaded)
    ]
    assert torch.equal(*drawn)
    half = load_pipeline(**paths)
    precisions = {half.transformer.head.weight.dtype, half.vae.decoder.conv_in.weight.dtype, half.text_encoder.dtype}
    assert precisions == {torch.bfloat16}
    exact = {
        half.transformer.crop_embed.weight.dtype,
        half.vae.quantize.embedding.weight.dtype,
        half.vae.encoder.conv_in.weight.dtype,
    }
    assert exact == {torch.float32}
    other = publish(small_vqvae(num_codes=8), tmp_path / "other")
    with pytest.raises(ValueError, match="expects 16 codes, by the VQ-VAE 8"):
        load_pipeline(**{**paths, "vae": str(other)}, dtype="float32")


def changed(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("blocks.1.attn.proj.bias"), r"lacks 1 of 59 tensors: blocks\.1\.attn\.proj\.bias"),
        (lambda tensors: tensors.pop("head.weight"), "lacks head.weight"),
        (lambda tensors: tensors.update(extra=torch.zeros(1)), "has, beside what is needed, 1 .* extra"),
        (lambda tensors: tensors.update(pos_start=torch.zeros(1, 1, 31)), "in another shape 1 .* pos_start"),
    ],
)
def test_weights_that_do_not_fit_are_listed(tmp_path: Path, change: Callable[..., object], message: str) -> None:
    folder = publish(tiny_transformer(), tmp_path / "transformer", CONFIG)
    changed(folder, change)
    with pytest.raises(ValueError, match=message):
        load_transformer(folder)


def test_a_file_that_was_cut_short_is_said(tmp_path: Path) -> None:
    path = publish(small_vqvae(), tmp_path / "vae") / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="damaged, cut short"):
        load_vqvae(path.parent)
    path.unlink()
    with pytest.raises(ValueError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
        load_vqvae(path.parent)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"depth": 2, "use_crop_cond": True, "reso": 512}, "must have depth, use_ar"),
        ({"depth": 2, "use_ar": False, "use_crop_cond": True, "reso": 500}, r"reso \(256, 512, 1024\).*reso=500"),
        ({**CONFIG, "rope": False}, "without rotary positions"),
    ],
)
def test_configurations_that_say_too_little_are_refused(
    tmp_path: Path, config: dict[str, object], message: str
) -> None:
    folder = publish(tiny_transformer(), tmp_path / "transformer", config)
    with pytest.raises(ValueError, match=message):
        load_transformer(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match="no config.json"):
        load_transformer(folder)


def test_wrong_arguments_are_said_before_anything_is_loaded() -> None:
    paths = dict.fromkeys(("transformer", "vae", "text_encoder", "text_encoder_2"), "./nowhere")
    with pytest.raises(ValueError, match="there is no folder ./nowhere"):
        load_pipeline(**paths)
    with pytest.raises(ValueError, match="float32, float16, bfloat16"):
        load_pipeline(**paths, dtype="int8")
