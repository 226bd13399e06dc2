"""What a file of ours says of itself."""

from datetime import date
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from src.data.banks import CONCEPT_BANK
from src.data.files import save_png
from src.data.model_spec import FIELDS, START
from src.data.notes import chunks
from src.data.request import Request
from src.data.schema import RefusedFileError
from src.modules.latexblend.bank import ConceptBank
from src.run.show import main, shown

ROWS = {"k.a": torch.ones(2, 3), "v.a": torch.ones(2, 3)}
METADATA = {
    "class_noun": "dog",
    "backbone_hash": "f00d",
    "backbone": "sdxl",
    "references": "photos/rex",
    "steps": "400",
}


def test_other_programs_find_title_trigger_and_hash_of_a_bank(tmp_path: Path) -> None:
    """ModelSpec 1.0.0, which front ends show; the hash is that which the file is checked by."""
    path = ConceptBank(ROWS, METADATA).save(tmp_path / "rex.safetensors")
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    spec = {key.removeprefix(START): text for key, text in metadata.items() if key.startswith(START)}
    assert date.fromisoformat(spec.pop("date"))
    assert spec == {
        "sai_model_spec": "1.0.0",
        "architecture": "sdxl/concept-bank",
        "implementation": "atelier",
        "title": "rex",
        "description": "a concept bank: dog, learnt from photos/rex",
        "hash_sha256": "0x" + metadata["sha256"],
        "trigger_phrase": "<rex>",
    }
    assert {*spec, "date"} == set(FIELDS)
    again = ConceptBank.load(path)
    assert again.save(tmp_path / "tom.safetensors").exists(), "what was read can be written under another name"
    assert CONCEPT_BANK.read_header(tmp_path / "tom.safetensors")[f"{START}trigger_phrase"] == "<tom>"


def test_a_bank_without_those_fields_still_loads(tmp_path: Path) -> None:
    ConceptBank(ROWS, METADATA).save(tmp_path / "rex.safetensors", torch.float32)
    with safe_open(tmp_path / "rex.safetensors", "pt") as file:
        plain = {key: text for key, text in file.metadata().items() if not key.startswith(START)}
    save_file(ROWS, tmp_path / "old.safetensors", metadata=plain)
    assert ConceptBank.load(tmp_path / "old.safetensors").class_noun == "dog"


def test_a_bank_is_shown_with_the_command_that_draws_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(ConceptBank(ROWS, METADATA).save(tmp_path / "rex.safetensors"))
    what, facts, use = shown(path)
    assert what == "a concept bank"
    assert {key: facts[key] for key in METADATA} == METADATA
    assert use == f"python generate.py \"prompt='a <rex> on the grass'\" bank.rex={path}"
    assert main([path]) == 0
    assert use in capsys.readouterr().out


def test_a_picture_is_shown_with_the_command_that_draws_it_again(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    save_png(Image.new("RGB", (8, 8)), path, chunks(Request("a dog", 7), (8, 8), {"backbone": "f00"}, {}))
    assert shown(str(path)) == (
        "a picture",
        {"prompt": "a dog", "seed": "7", "backbone": "f00"},
        f"python generate.py from={path}",
    )


def test_what_is_none_of_ours_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file(ROWS, tmp_path / "lora.safetensors")
    (tmp_path / "text.txt").write_text("hello", encoding="utf-8")
    for name, sentence in {
        "lora.safetensors": "none of ours: a concept bank, a concept of a rival method, an LLMDiff adapter",
        "text.txt": "neither a safetensors file nor a PNG",
        "none": "there is no file",
    }.items():
        with pytest.raises(RefusedFileError, match=sentence):
            shown(str(tmp_path / name))
    assert main([str(tmp_path / "none")]) == 1 and main([]) == 1
    assert "give one file: python -m src.run.show FILE" in capsys.readouterr().err
