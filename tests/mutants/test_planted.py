"""The list of planted bugs fits the code; ``python -m tests.mutants`` runs it."""

import re
from pathlib import Path

import pytest

from tests.mutants.planted import MUTANTS, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_bug_fits_its_file_once_and_its_test_exists(root: Path, mutant: Mutant) -> None:
    text = (root / mutant.file).read_text(encoding="utf-8")
    assert text.count(mutant.code) == 1, f"change or remove this one of tests/mutants/planted.yaml: {mutant.name}"
    assert mutant.bug != mutant.code
    if mutant.file.endswith(".py"):
        compile(text.replace(mutant.code, mutant.bug), mutant.file, "exec")
    file, _, test = mutant.test.partition("::")
    assert re.search(rf"^def {re.escape(test)}\(", (root / file).read_text(encoding="utf-8"), re.MULTILINE)


def test_every_bug_has_a_name_of_its_own() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 47
