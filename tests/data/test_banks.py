"""Banks that somebody else may have made: each that is no bank is refused in one sentence, before it is used."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from src.data.banks import CONCEPT_BANK
from src.data.schema import RefusedFileError
from src.modules.latexblend.bank import ConceptBank
from tests.malformed import DAMAGE, damaged, is_a_sentence, sha, written

METADATA = {
    "format": CONCEPT_BANK.format,
    "class_noun": "dog",
    "modifier_token": "<new1>",
    "backbone": "sd",
    "backbone_hash": "0123456789abcdef",
    "references": "world/subjects/rex",
    "templates": "pool",
    "extraction_template": "photo of {}",
    "seed": "0",
    "steps": "400",
    "training": "learning_rate=0.1 rank=None",
}
LONG = "x" * 50_000
FIELDS: list[tuple[str, str | None]] = [
    ("format", None),
    ("format", "atelier-concept-bank-2"),
    ("format", "\x1b[2J"),
    ("class_noun", None),
    ("class_noun", ""),
    ("class_noun", "   "),
    ("class_noun", "dog\n"),
    ("class_noun", "\x1b[31mdog"),
    ("class_noun", "<rex>"),
    ("class_noun", "{0.__class__}"),
    ("class_noun", LONG),
    ("backbone_hash", None),
    ("backbone_hash", ""),
    ("backbone_hash", "not a hash"),
    ("backbone_hash", "../../x"),
    ("backbone", "a\x00b"),
    ("modifier_token", "new1"),
    ("modifier_token", "<../../x>"),
    ("references", "a\nb"),
    ("references", LONG),
    ("templates", "pol"),
    ("templates", "pool,fixed"),
    ("extraction_template", ""),
    ("extraction_template", "photo of"),
    ("extraction_template", "{} in a photo"),
    ("extraction_template", "photo of {} {}"),
    ("extraction_template", "photo of {0}"),
    ("extraction_template", "photo of {noun}"),
    ("extraction_template", "{0.__class__.__init__.__globals__} of {}"),
    ("extraction_template", "photo of {!r}"),
    ("extraction_template", "photo of {:>99999999999}"),
    ("extraction_template", LONG + "{}"),
    ("seed", "seven"),
    ("seed", "1.5"),
    ("seed", "9" * 5000),
    ("steps", "-1"),
    ("steps", "nan"),
    ("training", "\x07"),
    ("training", LONG),
    ("_target_", "os.system"),
    ("custom_code", "bank.py"),
    ("sha256", None),
    ("sha256", ""),
    ("sha256", sha("another")),
    ("sha256", "Z" * 64),
]


def rows(layers: int = 2, tokens: int = 2, width: int = 8, dtype: torch.dtype = torch.float16) -> dict[str, Tensor]:
    return {f"{kind}.{at}": torch.ones(tokens, width, dtype=dtype) for kind in "kv" for at in range(layers)}


NAN, INFINITE = (torch.full((2, 8), value) for value in (float("nan"), float("inf")))
TENSORS: dict[str, dict[str, Tensor]] = {
    "no tensor": {},
    "rank 0": {**rows(), "k.0": torch.ones(())},
    "rank 1": {**rows(), "k.0": torch.ones(8)},
    "rank 5": {**rows(), "k.0": torch.ones(2, 2, 2, 2, 2)},
    "one row, for V* alone": rows(tokens=1),
    "no row": rows(tokens=0),
    "no width": rows(width=0),
    "1000 rows": rows(tokens=1000),
    "rows of other numbers": {**rows(), "k.0": torch.ones(3, 8), "v.0": torch.ones(3, 8)},
    "too wide": {"k.0": torch.ones(2, 2**17 + 1), "v.0": torch.ones(2, 2**17 + 1)},
    "integers": rows(dtype=torch.int64),
    "bytes": rows(dtype=torch.uint8),
    "switches": rows(dtype=torch.bool),
    "one integer row": {**rows(), "v.1": torch.ones(2, 8, dtype=torch.int32)},
    "NaN": {**rows(), "v.1": NAN},
    "infinite": {**rows(), "v.1": INFINITE},
    "minus infinite": {**rows(), "v.1": -INFINITE},
    "a key without a value": {name: row for name, row in rows().items() if name != "v.1"},
    "a value without a key": {name: row for name, row in rows().items() if name != "k.1"},
    "a strange name": {**rows(), "weight": torch.ones(2, 8)},
    "a name without layer": {**rows(), "k.": torch.ones(2, 8), "v.": torch.ones(2, 8)},
    "a name of another kind": {**rows(), "q.0": torch.ones(2, 8)},
    "a name with an escape": {**rows(), "k.\x1b[2J": torch.ones(2, 8), "v.\x1b[2J": torch.ones(2, 8)},
}


def refused(path: Path) -> str:
    with pytest.raises(RefusedFileError) as raised:
        ConceptBank.load(path)
    assert is_a_sentence(str(raised.value)), str(raised.value)
    return str(raised.value)


def test_there_are_enough_cases_and_a_whole_bank_is_read(tmp_path: Path) -> None:
    assert len(FIELDS) + len(TENSORS) + len(DAMAGE) >= 60
    bank = ConceptBank.load(written(tmp_path / "rex.safetensors", rows(), METADATA))
    assert bank.class_noun == "dog" and bank.num_tokens == 2


@pytest.mark.parametrize(("name", "value"), FIELDS, ids=lambda value: repr(value)[:40])
def test_wrong_metadata_is_refused(tmp_path: Path, name: str, value: str | None) -> None:
    metadata = {**METADATA, "sha256": sha("")} if name == "sha256" else dict(METADATA)
    metadata.pop(name, None)
    if value is not None:
        metadata[name] = value
    sentence = refused(written(tmp_path / "rex.safetensors", rows(), metadata, stamp=name != "sha256"))
    assert name in sentence


@pytest.mark.parametrize("case", TENSORS)
def test_wrong_rows_are_refused(tmp_path: Path, case: str) -> None:
    refused(written(tmp_path / "rex.safetensors", TENSORS[case], METADATA))


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_refused(tmp_path: Path, kind: str) -> None:
    path = written(tmp_path / "rex.safetensors", rows(), METADATA)
    damaged(path, kind)
    assert "rex.safetensors" in refused(path)


SEEN_IN_CONTENT = ("a bit turned", "NaN", "infinite", "minus infinite", sha("another"))
"""What the header alone does not show."""


@pytest.mark.parametrize("case", [*FIELDS, *TENSORS, *DAMAGE], ids=lambda case: str(case)[:40])
def test_the_header_alone_shows_all_but_the_content(tmp_path: Path, case: str | tuple[str, str | None]) -> None:
    path = tmp_path / "rex.safetensors"
    if isinstance(case, tuple):
        metadata = {**METADATA, "sha256": sha("")}
        metadata = {name: text for name, text in (metadata | {case[0]: case[1]}).items() if text is not None}
        written(path, rows(), metadata, stamp=False)
    else:
        written(path, TENSORS.get(case, rows()), METADATA)
        if case in DAMAGE:
            damaged(path, case)
    if (case[1] if isinstance(case, tuple) else case) in SEEN_IN_CONTENT:
        CONCEPT_BANK.read_header(path)
    else:
        with pytest.raises(RefusedFileError):
            CONCEPT_BANK.read_header(path)


@pytest.mark.parametrize(("name", "value"), [case for case in FIELDS if case[0] not in ("format", "sha256")])
def test_what_cannot_be_read_is_not_written(tmp_path: Path, name: str, value: str | None) -> None:
    metadata = {key: text for key, text in (METADATA | {name: value}).items() if text is not None and key != "format"}
    with pytest.raises(RefusedFileError):
        ConceptBank(rows(), metadata).save(tmp_path / "rex.safetensors")
    assert not list(tmp_path.iterdir())


def test_rows_that_float16_cannot_hold_are_not_written(tmp_path: Path) -> None:
    large = {name: row.float() * 1e6 for name, row in rows().items()}
    metadata = {"class_noun": "dog", "backbone_hash": "f00"}
    with pytest.raises(RefusedFileError, match="not finite"):
        ConceptBank(large, metadata).save(tmp_path / "rex.safetensors")
    assert not list(tmp_path.iterdir())
