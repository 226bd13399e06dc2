"""Any change of anything that a picture depends on is another identity, and each file is hashed once."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

from src.data import identity
from src.data.identity import folder_identity, hashed, warn_of_another
from src.modules.backbones.unet import UNetBackbone
from src.modules.latexblend.learner import class_images
from src.modules.next_scale.pipeline import model_identity
from src.modules.next_scale.saved import load_saved
from tests.llms import tiny_llm_folder
from tests.tiny import tiny_sdxl


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdxl")
    tiny_sdxl(folder).save_pretrained(folder / "saved")
    return folder / "saved"


def flipped(path: Path) -> None:
    """Change one bit of the last tensor."""
    tensors = load_file(path)
    tensors[max(tensors)].view(-1).view(torch.uint8)[-1] ^= 1
    save_file(tensors, path, {"format": "pt"})


def edited(path: Path) -> None:
    """Add an entry that the file did not have."""
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), "another": 1}), encoding="utf-8")


PARTS = {
    **dict.fromkeys(("unet", "vae", "text_encoder", "text_encoder_2"), "*.safetensors"),
    **dict.fromkeys(("tokenizer", "tokenizer_2"), "tokenizer.json"),
    "scheduler": "scheduler_config.json",
    "settings": "../model_index.json",
}


@pytest.mark.parametrize("config", [False, True], ids=["weights", "config"])
@pytest.mark.parametrize("part", PARTS)
def test_each_part_of_a_checkpoint_counts(saved: Path, tmp_path: Path, part: str, config: bool) -> None:
    own = shutil.copytree(saved, tmp_path / "own")
    before = UNetBackbone.content({"path": str(saved)})
    assert UNetBackbone.content({"path": str(own)}) == before and set(PARTS) <= set(before)
    target = own / "model_index.json" if part == "settings" else next((own / part).glob(PARTS[part]))
    if target.suffix == ".safetensors":
        flipped(target) if not config else edited(own / part / "config.json")
    else:
        edited(target)
    after = UNetBackbone.content({"path": str(own)})
    assert {name for name in before if before[name] != after[name]} == {part}


CHANGES = {
    "unet": lambda pipeline: pipeline.unet.conv_out.bias.data.add_(1),
    "vae": lambda pipeline: pipeline.vae.register_to_config(scaling_factor=0.5),
    "text_encoder_2": lambda pipeline: pipeline.text_encoder_2.get_input_embeddings().weight.data.add_(1),
    "tokenizer": lambda pipeline: pipeline.tokenizer.add_tokens("atelier"),
    "scheduler": lambda pipeline: pipeline.scheduler.register_to_config(beta_end=0.5),
    "settings": lambda pipeline: pipeline.register_to_config(force_zeros_for_empty_prompt=False),
}


@pytest.mark.parametrize("part", CHANGES)
def test_each_part_of_a_pipeline_in_memory_counts(saved: Path, part: str) -> None:
    pipeline, other = (DiffusionPipeline.from_pretrained(saved) for _ in range(2))
    before = UNetBackbone(other, "own")
    CHANGES[part](pipeline)
    after = UNetBackbone(pipeline, "own")
    assert {name for name in before.parts if before.parts[name] != after.parts[name]} == {part}
    assert before.identity != after.identity
    assert (before.autoencoder_identity != after.autoencoder_identity) == (part == "vae")


def test_a_loaded_lora_and_its_strength_count(saved: Path) -> None:
    peft = pytest.importorskip("peft")
    pipeline = DiffusionPipeline.from_pretrained(saved)
    found = [UNetBackbone(pipeline, "own").identity]
    pipeline.unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q"]), "style")
    for strength in (1.0, 0.5):
        pipeline.unet.set_adapters("style", strength)
        found.append(UNetBackbone(pipeline, "own").identity)
    assert len(set(found)) == 3


def test_where_a_model_is_and_how_it_is_used_does_not_count(saved: Path, tmp_path: Path) -> None:
    own = shutil.copytree(saved, tmp_path / "elsewhere")
    first, second = UNetBackbone.from_pretrained(str(saved)), UNetBackbone.from_pretrained(str(own))
    assert first.identity == second.identity
    half = UNetBackbone.from_pretrained(str(own), "bfloat16")
    assert half.parts == first.parts and half.identity != first.identity
    # Weights in another precision beside the model's own are not read.
    shutil.copy(own / "vae" / "diffusion_pytorch_model.safetensors", own / "vae" / "other.fp16.safetensors")
    assert UNetBackbone.content({"path": str(own)}) == first.parts


def test_a_scale_wise_model_is_all_its_files(tmp_path: Path) -> None:
    own = shutil.copytree("world/infinity", tmp_path / "own", ignore=shutil.ignore_patterns(identity.KEPT))
    before = model_identity(load_saved("world/infinity"))
    assert model_identity(load_saved(str(own))) == before
    flipped(next((own / "vae").glob("*.safetensors")))
    assert model_identity(load_saved(str(own))) != before


def test_every_byte_of_a_language_model_counts(tmp_path: Path) -> None:
    folder = tiny_llm_folder(tmp_path / "llm")
    found = [folder_identity(folder)]
    flipped(folder / "model.safetensors")
    found.append(folder_identity(folder))
    edited(folder / "tokenizer_config.json")
    found.append(folder_identity(folder))
    assert len(set(found)) == 3
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"holds no \*\.safetensors"):
        folder_identity(folder)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Names of the files that were read to be hashed; files count as settled at once."""
    names: list[str] = []
    sha256 = identity._sha256
    monkeypatch.setattr(identity, "_sha256", lambda path: (names.append(path.name), sha256(path))[1])
    monkeypatch.setattr(identity, "SETTLED_SECONDS", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    return names


def test_a_file_is_hashed_once_until_it_changes(tmp_path: Path, read: list[str]) -> None:
    root = tmp_path / "model"
    (root / "unet").mkdir(parents=True)
    files = [root / "unet" / name for name in ("a", "b")]
    for file in files:
        file.write_bytes(b"1")
    first = hashed(root, files)
    assert first == hashed(root, files) and sorted(read) == ["a", "b"] and list(first) == ["unet/a", "unet/b"]
    # Same size and same time of change, as an archive that is unpacked twice may leave it.
    status = files[0].stat()
    files[0].write_bytes(b"2")
    os.utime(files[0], ns=(status.st_atime_ns, status.st_mtime_ns))
    second = hashed(root, files)
    assert (
        second["unet/a"] != first["unet/a"] and second["unet/b"] == first["unet/b"] and sorted(read) == ["a", "a", "b"]
    )
    (root / identity.KEPT).write_text('{"unet/a": 3, "unet/b": [1', encoding="utf-8")
    assert hashed(root, files) == second and sorted(read) == ["a", "a", "a", "b", "b"]


def test_a_folder_that_takes_no_file_has_its_hashes_in_the_users_cache(
    tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "model"
    root.mkdir()
    (root / "a").write_bytes(b"1")
    write_text = identity.write_text

    def refused(path: Path, text: str) -> None:
        if root in path.parents:
            raise PermissionError(path)
        write_text(path, text)

    monkeypatch.setattr(identity, "write_text", refused)
    assert hashed(root, [root / "a"]) == hashed(root, [root / "a"]) and read == ["a"]
    assert not (root / identity.KEPT).exists() and list((tmp_path / "user").rglob("*.json"))


def test_a_file_that_has_just_changed_is_not_relied_on(tmp_path: Path, read: list[str], monkeypatch) -> None:
    monkeypatch.setattr(identity, "SETTLED_SECONDS", 60)
    (tmp_path / "a").write_bytes(b"1")
    assert hashed(tmp_path, [tmp_path / "a"]) == hashed(tmp_path, [tmp_path / "a"]) and read == ["a", "a"]


def test_a_bank_of_other_weights_beside_the_same_cross_attention_is_warned_of(saved: Path, caplog) -> None:
    first, second = (UNetBackbone(DiffusionPipeline.from_pretrained(saved), "own") for _ in range(2))
    made_with = {"backbone_content": first.content_hash}
    warn_of_another(made_with, first.content_hash, "own", "the bank of rex")
    warn_of_another({}, first.content_hash, "own", "a bank of an earlier version")
    assert not caplog.text
    second.pipeline.scheduler.register_to_config(beta_end=0.5)
    assert second.fingerprint == first.fingerprint
    warn_of_another(made_with, second.content_hash, "own", "the bank of rex")
    assert (
        "the bank of rex was trained with other files than own: the same cross-attention, but perhaps another"
        in caplog.text
    )


def test_class_images_of_another_autoencoder_are_drawn_anew(saved: Path, tmp_path: Path) -> None:
    for change in (0, 1):
        pipeline = DiffusionPipeline.from_pretrained(saved)
        pipeline.vae.decoder.conv_out.bias.data.add_(change)
        class_images(UNetBackbone(pipeline, "own"), "dog", 1, 64, tmp_path)
    first, second = (path.read_bytes() for path in tmp_path.rglob("*.png"))
    assert first != second
