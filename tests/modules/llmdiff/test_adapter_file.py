"""Adapters that somebody else may have made: each that is no adapter is refused in one sentence, before it is used."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from src.data.schema import RefusedFileError
from src.modules.backbones.unet import UNetBackbone
from src.modules.llmdiff.adapter import LLMDiffAdapter
from src.modules.llmdiff.adapter_file import LLMDIFF_ADAPTER
from src.modules.llmdiff.encoder import LLMEncoder
from src.modules.llmdiff.generator import trained_encoder
from src.modules.llmdiff.language_model import LanguageModel
from tests.llms import tiny_llm_folder
from tests.malformed import DAMAGE, damaged, is_a_sentence, sha, written
from tests.tiny import tiny_sd

LONG = "x" * 50_000
FIELDS: list[tuple[str, str | None]] = [
    *((name, None) for name in (*LLMDIFF_ADAPTER.required, "format", "sha256")),
    ("format", "atelier-concept-bank-1"),
    ("llm", ""),
    ("llm", "a\nb"),
    ("llm", LONG),
    ("llm_revision", "main"),
    ("llm_dtype", "float8"),
    ("llm_dtype", "__class__"),
    ("llm_width", "0"),
    ("llm_width", "-32"),
    ("llm_width", "32.0"),
    ("llm_width", "many"),
    ("llm_width", "1" + "0" * 15),
    ("llm_width", "9" * 5000),
    ("llm_width", "64"),
    ("num_terms", "-1"),
    ("num_terms", "1000000000"),
    ("num_terms", "2"),
    ("num_terms", "nan"),
    ("backbone_hash", "x"),
    ("backbone", "\x1b[2J"),
    ("num_steps", "-5"),
    ("num_steps", "inf"),
    ("sha256", sha("another")),
    ("training", LONG),
    ("_target_", "os.system"),
    ("auto_map", "modeling.py"),
]
JSON: list[tuple[str, str]] = [
    (field, text)
    for field in ("adapter", "encoding")
    for text in (
        *("", "null", "[]", "7", '"x"', "{", "{'features': 'last'}", "[" * 19_000, LONG),
        *('{"_target_": "os.system"}', '{"a": NaN}', '{"__class__": 1}'),
    )
] + [
    ("adapter", '{"initial": "os.system"}'),
    ("adapter", '{"initial": 1}'),
    ("adapter", '{"initial": null}'),
    ("adapter", '{"phi_std": "0"}'),
    ("adapter", '{"phi_std": -1}'),
    ("adapter", '{"phi_std": true}'),
    ("adapter", '{"phi_std": 1e999}'),
    ("adapter", '{"gain_init": Infinity}'),
    ("adapter", '{"bottleneck": 0}'),
    ("adapter", '{"bottleneck": 8.5}'),
    ("adapter", '{"bottleneck": 1000000000000}'),
    ("adapter", '{"bottleneck": 8, "key_value": "phi"}'),
    ("adapter", '{"gain": "channel"}'),
    ("adapter", '{"score": ["delta"]}'),
    ("encoding", '{"features": "pickle"}'),
    ("encoding", '{"blocks": "all"}'),
    ("encoding", '{"blocks": []}'),
    ("encoding", '{"blocks": [-1]}'),
    ("encoding", '{"blocks": [0.5]}'),
    ("encoding", '{"blocks": [true]}'),
    ("encoding", '{"append_eos": "yes"}'),
    ("encoding", '{"max_length": 1}'),
]

Tensors = dict[str, Tensor]


def without(start: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if not name.startswith(start)}


def changed(start: str, change: Callable[[Tensor], Tensor]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {
        name: change(tensor).contiguous() if name.startswith(start) else tensor for name, tensor in tensors.items()
    }


CHANGES: dict[str, Callable[[Tensors], Tensors]] = {
    "no tensor": lambda tensors: {},
    "no layer": without("layers"),
    "not all layers": without("layers.down"),
    "no phi": without("phi.weight"),
    "no bias of phi": without("phi_bias"),
    "no gain": without("aggregation.gain"),
    "no norm": without("aggregation.final_norm"),
    "one more": lambda tensors: {**tensors, "layers.evil": torch.ones(1)},
    "a strange name": lambda tensors: {**tensors, "evil": torch.ones(1)},
    "pooled text of SDXL": lambda tensors: {
        **tensors,
        "pooled.weight": torch.ones(4, 32),
        "pooled.bias": torch.ones(4),
    },
    "pooled bias of rank 0": lambda tensors: {**tensors, "pooled.bias": torch.ones(())},
    "phi of rank 1": changed("phi.weight", lambda tensor: tensor[0]),
    "phi of rank 3": changed("phi.weight", lambda tensor: tensor[None]),
    "phi turned": changed("phi.weight", lambda tensor: tensor.T),
    "bias of rank 1": changed("phi_bias", lambda tensor: tensor[0]),
    "bias of other width": changed("phi_bias", lambda tensor: tensor[:, 1:]),
    "bias without rows": changed("phi_bias", lambda tensor: tensor[:0]),
    "gain of another number": changed("aggregation.gain", lambda tensor: torch.cat([tensor, tensor])),
    "layers cut": changed("layers", lambda tensor: tensor[:1] if tensor.ndim else tensor),
    "scalars of rank 1": changed("layers", lambda tensor: tensor if tensor.ndim else tensor[None]),
    "integers": changed("phi.weight", lambda tensor: tensor.long()),
    "NaN": changed("phi_bias", lambda tensor: tensor * float("nan")),
    "infinite": changed("layers", lambda tensor: tensor + float("inf")),
}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> UNetBackbone:
    return UNetBackbone(tiny_sd(tmp_path_factory.mktemp("sd")), "sd")


@pytest.fixture(scope="module")
def whole(backbone: UNetBackbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    encoder = LLMEncoder(LanguageModel.from_pretrained(str(tiny_llm_folder(folder / "llm"))))
    path = folder / "adapter.safetensors"
    return LLMDiffAdapter.for_backbone(backbone, encoder).save(path, encoder, backbone, 3, '{"seed": 0}')


def told(whole: Path) -> dict[str, str]:
    with safe_open(whole, "pt") as file:
        return file.metadata()


def refused(path: Path, backbone: UNetBackbone) -> str:
    with pytest.raises(RefusedFileError) as raised:
        LLMDiffAdapter.load(path, backbone)
    assert is_a_sentence(str(raised.value)), str(raised.value)
    return str(raised.value)


def test_there_are_enough_cases(whole: Path, backbone: UNetBackbone) -> None:
    assert len(FIELDS) + len(JSON) + len(CHANGES) + len(DAMAGE) >= 40
    assert LLMDiffAdapter.load(whole, backbone).metadata["num_steps"] == "3"


@pytest.mark.parametrize(("name", "value"), [*FIELDS, *JSON], ids=lambda value: repr(value)[:40])
def test_wrong_metadata_is_refused(
    whole: Path, backbone: UNetBackbone, tmp_path: Path, name: str, value: str | None
) -> None:
    metadata = {key: text for key, text in {**told(whole), name: value}.items() if text is not None}
    path = written(tmp_path / "adapter.safetensors", load_file(whole), metadata, stamp=False)
    refused(path, backbone)
    if value != sha("another"):
        with pytest.raises(RefusedFileError):
            trained_encoder(path)


@pytest.mark.parametrize("case", CHANGES)
def test_wrong_weights_are_refused(whole: Path, backbone: UNetBackbone, tmp_path: Path, case: str) -> None:
    tensors = CHANGES[case](load_file(whole))
    refused(written(tmp_path / "adapter.safetensors", tensors, told(whole)), backbone)


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_refused(whole: Path, backbone: UNetBackbone, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(whole.read_bytes())
    damaged(path, kind)
    assert "adapter.safetensors" in refused(path, backbone)


def test_options_that_are_left_out_have_their_defaults(whole: Path, backbone: UNetBackbone, tmp_path: Path) -> None:
    metadata = {**told(whole), "adapter": json.dumps({"noise": "train"}), "encoding": "{}"}
    path = written(tmp_path / "adapter.safetensors", load_file(whole), metadata)
    assert LLMDiffAdapter.load(path, backbone).options == LLMDiffAdapter.load(whole, backbone).options


@pytest.mark.parametrize(
    "name", ["somebody/model-that-is-nowhere", "../../no/such/folder", "https://example.org/model"]
)
@pytest.mark.parametrize("download", [False, True])
def test_a_repository_that_the_file_names_is_fetched_only_on_request(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, download: bool
) -> None:
    asked = []

    def from_pretrained(path: str, dtype: str, local_files_only: bool = False) -> LanguageModel:
        asked.append(not local_files_only)
        raise ValueError("cannot be had")

    path = written(tmp_path / "adapter.safetensors", load_file(whole), {**told(whole), "llm": name})
    monkeypatch.setattr(LanguageModel, "from_pretrained", from_pretrained)
    with pytest.raises(RefusedFileError, match=r"method\.encoder\.download=true"):
        trained_encoder(path, download=download)
    assert asked == [download]


def test_code_that_a_language_model_brings_is_not_run(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "llm"
    folder.mkdir()
    config = {"model_type": "own", "auto_map": {"AutoConfig": "configuration_own.OwnConfig"}}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "configuration_own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')", encoding="utf-8")
    with pytest.raises(ValueError, match="own"):
        trained_encoder(whole, path=str(folder))
    assert not (tmp_path / "ran").exists()
