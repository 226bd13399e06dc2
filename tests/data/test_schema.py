"""Other files that somebody else may have made: each that is wrong is refused in one sentence."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from src.data.model_index import read_model_index
from src.data.schema import RefusedFileError
from src.data.styles import style_references
from src.data.world.linear_code import LinearCode
from src.data.world.manifest import read_manifest
from src.eval.sweeps.points import _read as read_point
from src.modules.next_scale.loading import read_weights
from tests.malformed import is_a_sentence

TEXTS: list[bytes] = [b"", b"{", b"null", b"7", b'"x"', b"[]", b"\xff\xfe\x00", b"[" * 100_000, b"\x89PNG" + bytes(99)]
INDEX = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}


def refused(read, *arguments) -> str:
    with pytest.raises(RefusedFileError) as raised:
        read(*arguments)
    assert is_a_sentence(str(raised.value)), str(raised.value)
    return str(raised.value)


def told(content: bytes | dict) -> bytes:
    return content if isinstance(content, bytes) else json.dumps(content).encode()


@pytest.mark.parametrize(
    "content",
    [
        *TEXTS,
        {},
        {"_class_name": 7},
        {"_class_name": ["pipeline", "Pipeline"]},
        {"_class_name": "os.system"},
        {"_class_name": "A-B"},
        INDEX | {"unet": ["os", "system"]},
        INDEX | {"unet": ["unet", "Unet"]},
        INDEX | {"unet": ["diffusers_evil", "UNet2DConditionModel"]},
        INDEX | {"unet": ["src.run.targets", "build"]},
        INDEX | {"unet": ["diffusers", "utils.os.system"]},
        INDEX | {"unet": ["diffusers", None]},
        INDEX | {"unet": [None, "UNet2DConditionModel"]},
        INDEX | {"unet": ["diffusers", ["a", "b"]]},
        INDEX | {"evil": ["subprocess", "Popen"]},
        INDEX | {"evil": ["../x", "Popen"]},
    ],
    ids=lambda content: str(content)[:40],
)
def test_an_index_names_classes_of_known_libraries(tmp_path: Path, content: bytes | dict) -> None:
    (tmp_path / "model_index.json").write_bytes(told(content))
    refused(read_model_index, tmp_path)


@pytest.mark.parametrize("index", sorted(Path("world").glob("*/model_index.json")), ids=str)
def test_indices_of_the_world_are_read(index: Path) -> None:
    assert read_model_index(index.parent)["_class_name"]


@pytest.mark.parametrize(
    "content",
    [
        *TEXTS,
        {"format": 1},
        {"format": 1, "files": []},
        {"format": 1, "files": {}},
        {"format": 1, "files": {"a": None}},
        {"format": 1, "files": {"a": {"bytes": 1}}},
        {"format": 1, "files": {"a": {"bytes": "1", "sha256": "0" * 64}}},
        {"format": 1, "files": {"a": {"bytes": -1, "sha256": "0" * 64}}},
        {"format": 1, "files": {"a": {"bytes": 1, "sha256": "x"}}},
        {"format": 1, "files": {"a": {"bytes": 1, "sha256": "0" * 64, "run": "ls"}}},
    ],
    ids=lambda content: str(content)[:60],
)
def test_a_manifest_lists_bytes_and_checksums(tmp_path: Path, content: bytes | dict) -> None:
    (tmp_path / "manifest.json").write_bytes(told(content))
    with pytest.raises(ValueError, match=r"manifest\.json") as raised:
        read_manifest(tmp_path)
    assert is_a_sentence(str(raised.value))


@pytest.mark.parametrize(
    "content",
    [
        *TEXTS,
        {},
        {"style": "neon"},
        {"style": "neon", "content": ""},
        {"style": 7, "content": "a cat"},
        {"style": ["neon"], "content": "a cat"},
        {"style": "neon\x1b[2J", "content": "a cat"},
    ],
    ids=lambda content: str(content)[:40],
)
def test_a_style_says_style_and_content(tmp_path: Path, content: bytes | dict) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "neon.png")
    (tmp_path / "neon.json").write_bytes(told(content))
    assert "neon.json" in refused(style_references, tmp_path)


@pytest.mark.parametrize("content", [*TEXTS, {}, {"compared": 7}], ids=lambda content: str(content)[:40])
def test_a_point_of_a_sweep_says_what_is_compared(tmp_path: Path, content: bytes | dict) -> None:
    (tmp_path / "metrics.json").write_bytes(told(content))
    with pytest.raises(ValueError, match=r"metrics\.json"):
        read_point(tmp_path, "point")


@pytest.mark.parametrize(
    "content",
    [
        *TEXTS,
        {},
        {"weight_map": []},
        {"weight_map": {}},
        {"weight_map": {"a": 7}},
        {"weight_map": {"a": "../../elsewhere.safetensors"}},
        {"weight_map": {"a": "/etc/elsewhere.safetensors"}},
        {"weight_map": {"a": "deep/elsewhere.safetensors"}},
        {"weight_map": {"a": ".."}},
    ],
    ids=lambda content: str(content)[:60],
)
def test_shards_lie_beside_their_list(tmp_path: Path, content: bytes | dict) -> None:
    (tmp_path / "model.safetensors.index.json").write_bytes(told(content))
    with pytest.raises(ValueError, match="safetensors") as raised:
        read_weights(tmp_path)
    assert is_a_sentence(str(raised.value))


WHOLE = {
    "mean": np.zeros(192, np.float32),
    "components": np.zeros((4, 192), np.float32),
    "scales": np.ones(4, np.float32),
}


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {name: array for name, array in WHOLE.items() if name != "mean"},
        WHOLE | {"evil": np.ones(1, np.float32)},
        WHOLE | {"mean": np.zeros(3, np.float32)},
        WHOLE | {"scales": np.ones(3, np.float32)},
        WHOLE | {"scales": np.full(4, np.nan, np.float32)},
        WHOLE | {"scales": np.ones(0, np.float32), "components": np.zeros((0, 192), np.float32)},
        WHOLE | {"scales": np.ones((), np.float32)},
        None,
    ],
    ids=lambda arrays: str(arrays and {name: array.shape for name, array in arrays.items()}),
)
def test_a_linear_code_has_its_three_arrays(tmp_path: Path, arrays: dict | None) -> None:
    path = tmp_path / "code.safetensors"
    path.write_text("no code", encoding="utf-8") if arrays is None else save_file(arrays, path)
    refused(LinearCode.load, path)
