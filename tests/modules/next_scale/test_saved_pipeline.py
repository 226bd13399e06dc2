"""Folders that ``save_pretrained`` wrote: both kinds are found again, and damage is said in a sentence."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

from src.modules.next_scale.loading import Placement
from src.modules.next_scale.saved import load_saved
from tests.modules.next_scale import tiny_infinity, tiny_switti

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_infinity.tiny_pipeline(tmp_path, sampling={"temperature": 1.0}).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.mark.parametrize("tiny", [tiny_infinity, tiny_switti], ids=["infinity", "switti"])
def test_a_saved_pipeline_is_found_again(tmp_path: Path, tiny) -> None:
    pipeline: DiffusionPipeline = tiny.tiny_pipeline(tmp_path)
    pipeline.save_pretrained(tmp_path / "saved")
    loaded = load_saved(str(tmp_path / "saved"), placement=Placement(tiling=True))
    assert type(loaded) is type(pipeline)
    assert loaded.vae.tile == (32, 8)
    for name, tensor in pipeline.transformer.state_dict().items():
        assert torch.equal(loaded.transformer.state_dict()[name], tensor)
    half = load_saved(str(tmp_path / "saved"), dtype="bfloat16")
    assert half.vae.decoder.conv_in.weight.dtype == half.text_encoder.dtype == torch.bfloat16
    assert half.vae.encoder.conv_in.weight.dtype == torch.float32


def test_a_folder_of_an_earlier_version_names_modules_that_are_gone(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    index["transformer"][0], index["vae"][0] = "src.modules.scale_ar.infinity", "src.modules.scale_ar.bsq_autoencoder"
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    assert load_saved(str(folder)).transformer.config.depth > 0


def test_a_models_own_sampling_is_saved_with_it(folder: Path) -> None:
    loaded = load_saved(str(folder))
    assert (loaded.sampling["temperature"], loaded.sampling["top_p"]) == (1.0, 0.97)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [cut, Path.unlink], ids=["cut", "absent"])
@pytest.mark.parametrize("file", [WEIGHTS, "text_encoder/model.safetensors", "vae/config.json"])
def test_damaged_folders_are_said(folder: Path, damage: Callable[[Path], None], file: str) -> None:
    damage(folder / file)
    with pytest.raises(ValueError, match="saved is incomplete or damaged; fetch it again"):
        load_saved(str(folder))


def test_weights_that_do_not_fit_are_not_filled_in(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    for changed, message in (
        ({name: tensor for name, tensor in tensors.items() if name != "start"}, "lack 1 tensors, such as start"),
        ({**tensors, "extra": torch.zeros(1)}, "have, beside what fits, 1 tensors, such as extra"),
        ({**tensors, "start": torch.zeros(1, 1, 8)}, "do not fit the config.json beside them .*start expected shape"),
    ):
        save_file(changed, folder / WEIGHTS)
        with pytest.raises(ValueError, match=message):
            load_saved(str(folder))


def test_weights_that_could_run_code_are_not_read(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    torch.save({}, folder / "transformer" / "diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match="incomplete or damaged"):
        load_saved(str(folder))


def test_other_folders_are_said(folder: Path) -> None:
    with pytest.raises(ValueError, match="int8"):
        load_saved(str(folder), dtype="int8")
    with pytest.raises(ValueError, match="there is no pipeline in nowhere"):
        load_saved("nowhere")
    index = folder / "model_index.json"
    index.write_text(json.dumps({"_class_name": "FluxPipeline"}), encoding="utf-8")
    with pytest.raises(ValueError, match="holds a FluxPipeline; what is wanted is one of InfinityPipeline"):
        load_saved(str(folder))
    cut(index)
    with pytest.raises(ValueError, match="may be truncated"):
        load_saved(str(folder))
