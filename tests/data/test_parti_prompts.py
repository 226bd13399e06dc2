import os
from collections import Counter

import pytest

from src.data.styles import StylePrompt, style_prompts

COUNTS = {
    "Artifacts": 66,
    "Animals": 42,
    "Outdoor Scenes": 24,
    "Illustrations": 19,
    "Vehicles": 14,
    "Food & Beverage": 10,
    "Produce & Plants": 10,
    "Indoor Scenes": 5,
}


def test_the_published_190_are_recovered():
    path = os.environ.get("ATELIER_PARTI")
    if not path:
        pytest.skip("set ATELIER_PARTI to the PartiPrompts.tsv of google-research/parti")
    prompts = style_prompts(path)
    assert len(prompts) == len({prompt.content for prompt in prompts}) == 190
    assert Counter(prompt.category for prompt in prompts) == COUNTS
    # Named in the figures of arXiv 2507.04482; its "a cat reading a book" is no basic prompt.
    contents = {prompt.content for prompt in prompts}
    assert {"a cat", "a pick-up truck", "a bench", "a flower"} <= contents
    assert "a cat reading a book" not in contents


def test_the_filter_keeps_basic_things_in_order(tmp_path):
    lines = [
        "Prompt\tCategory\tChallenge\tNote",
        "bond\tAbstract\tBasic\tx",
        'a "cat"\tAnimals\tBasic\tx',
        "a cat reading a book\tAnimals\tImagination\tx",
        "a chef\tPeople\tBasic\tx",
        "a bench\tArtifacts\tBasic\t",
    ]
    path = tmp_path / "PartiPrompts.tsv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert style_prompts(path) == [StylePrompt('a "cat"', "Animals"), StylePrompt("a bench", "Artifacts")]


def test_another_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no file"):
        style_prompts(tmp_path / "nothing.tsv")
    (tmp_path / "other.tsv").write_text("Prompt\tKind\na cat\tAnimals\n", encoding="utf-8")
    with pytest.raises(ValueError, match="has no column Category, Challenge"):
        style_prompts(tmp_path / "other.tsv")
