"""Pages say what their results say: words come from intervals, and intervals can be computed again from rows."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from experiments.claims import BLOCK, ROOT, Declared, pages, stray_words, written
from experiments.study import Study
from src.eval.results.results import write_rows

NAMES = [str(path.relative_to(ROOT)) for path in pages()]
INTERVAL = {"mean": 0.2, "low": 0.1, "high": 0.3}


@pytest.mark.parametrize("name", NAMES)
def test_a_page_says_what_its_results_say(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert written(text) == text, "python -m experiments.claims --write"


@pytest.mark.parametrize("name", NAMES)
def test_no_verdict_word_stands_outside_of_the_claims(name: str) -> None:
    assert not stray_words((ROOT / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("experiments/")])
def test_a_verdict_begins_with_the_claims_of_its_folder(name: str) -> None:
    folder = Path(name).parent.name
    assert f"## Verdict\n<!-- claims: {folder} -->\n" in (ROOT / name).read_text(encoding="utf-8")


@pytest.fixture
def experiments(tmp_path: Path) -> Path:
    """A folder with a study of one published sign that is shown, one that is undecided, and a harmonic."""
    results = tmp_path / "made_up" / "results"
    results.mkdir(parents=True)
    undecided = INTERVAL | {"low": -0.1}
    differences = {"b text": {"interval": INTERVAL}, "b image": {"interval": undecided}}
    means = {arm: {"text": INTERVAL, "image": INTERVAL, "harmonic": INTERVAL} for arm in ("a", "b")}
    published = {"b": {"text": 0.01, "image": 0.02, "harmonic": -0.03}}
    record = {"baseline": "a", "means": means, "differences": differences, "published": published}
    (results / "comparison.json").write_text(
        json.dumps(record | {"harmonic_differences": {"b": INTERVAL}}), encoding="utf-8"
    )
    claims = {
        "all": {"says": "every sign", "every": "published"},
        "text": {"says": "text rises", "arm": "ours", "score": "text"},
        "image": {"says": "images get nearer", "arm": "ours", "score": "image"},
        "less": {"says": "text falls", "arm": "ours", "score": "text", "asked": "down"},
        "level": {"says": "text is above one half", "arm": "ours", "score": "text", "above": 0.5},
        "count": {"says": "differences exclude 0", "every": "difference"},
    }
    declared = {"arms": {"plain": "a", "ours": "b"}, "claims": claims, "tables": {"means": {"scores": ["text"]}}}
    (results.parent / "claims.yaml").write_text(yaml.safe_dump(declared, sort_keys=False), encoding="utf-8")
    return tmp_path


def test_each_word_comes_from_its_interval(experiments: Path) -> None:
    words = Declared(experiments / "made_up").words()
    assert words == {
        "all": "opposite",
        "text": "shown",
        "image": "undecided",
        "less": "opposite",
        "level": "opposite",
        "count": "2 of 3",
    }


def test_all_published_signs_include_the_harmonic(experiments: Path) -> None:
    line = Declared(experiments / "made_up").line("all").replace("\n ", "")
    assert "1 shown, 1 undecided, 1 opposite (ours, image undecided; ours, harmonic opposite)" in line


def test_one_sign_that_is_undecided_leaves_all_of_them_so(experiments: Path) -> None:
    path = experiments / "made_up" / "results" / "comparison.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"harmonic": -0.03', '"harmonic": 0.03'), encoding="utf-8")
    assert Declared(experiments / "made_up").words()["all"] == "undecided"


def test_an_arm_that_is_not_named_counts_among_all_signs(experiments: Path) -> None:
    path = experiments / "made_up" / "claims.yaml"
    told = {"arms": {"plain": "a"}, "claims": {"all": {"says": "every sign", "every": "published"}}}
    path.write_text(yaml.safe_dump(told), encoding="utf-8")
    assert Declared(experiments / "made_up").words() == {"all": "opposite"}


def test_a_page_that_its_results_contradict_is_noticed(experiments: Path) -> None:
    page = written("<!-- claims: made_up text -->\n<!-- end -->\n", experiments)
    assert "- **Shown:** text rises: 0.200 [0.100, 0.300], published +0.010.\n" in page
    results = experiments / "made_up" / "results" / "comparison.json"
    results.write_text(results.read_text(encoding="utf-8").replace('"low": 0.1', '"low": -0.05'), encoding="utf-8")
    assert "- **Undecided:** text rises: 0.200 [-0.050, 0.300], published +0.010.\n" in written(page, experiments)


def test_what_is_not_run_has_no_verdict(experiments: Path) -> None:
    results = experiments / "made_up" / "results"
    results.rename(experiments / "elsewhere")
    page = written("<!-- claims: made_up text count -->\n<!-- end -->\n", experiments)
    assert "- **Not run:** text rises.\n- **Not run:** differences exclude 0.\n" in page
    with pytest.raises(ValueError, match="is missing"):
        written("<!-- table: made_up means -->\n<!-- end -->\n", experiments)


def test_a_table_holds_what_the_file_holds(experiments: Path) -> None:
    page = written("<!-- table: made_up means -->\n<!-- end -->\n", experiments)
    assert "|  | text |\n| --- | --- |\n| plain | 0.200 [0.100, 0.300] |\n" in page


@pytest.mark.parametrize("word", ["shown", "Undecided", "opposite", "significantly"])
def test_a_word_that_nobody_computed_is_found(word: str) -> None:
    assert stray_words(f"It is {word} here.") == [word]
    assert not stray_words(f'"{word}" means this, `{word}` is code')
    assert not stray_words(f"<!-- claims: x -->\n- **{word}:** it.\n<!-- end -->\n")


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        ({"claims": {"a": {"say": "x"}}}, "unknown key 'say'"),
        ({"arm": {}}, "unknown key 'arm'"),
    ],
)
def test_a_mistyped_key_is_refused(experiments: Path, told: dict[str, object], sentence: str) -> None:
    (experiments / "made_up" / "claims.yaml").write_text(yaml.safe_dump(told), encoding="utf-8")
    with pytest.raises(ValueError, match=sentence):
        Declared(experiments / "made_up")


def test_a_claim_that_is_not_declared_is_refused(experiments: Path) -> None:
    with pytest.raises(ValueError, match="declares no claims 'txet'; it has all, text"):
        written("<!-- claims: made_up txet -->\n<!-- end -->\n", experiments)


NUMBER = re.compile(r"(?<![\w.])\d*\.\d+(?![\de])%?|(?<![\w.])\d+%")
KNOWN = {"3.11", "2507.04482", "1.5", "0.05", "0.0625"}
"""Versions, a paper and bounds of p-values."""


def sources(folder: Path) -> list[Path]:
    """Files that hold numbers: the results of a folder, what the world's models are, what the benchmarks printed."""
    found = [path for path in folder.rglob("results/*") if path.suffix in (".json", ".md", ".txt")]
    return [*found, ROOT / "world" / "README.md", ROOT / "benchmarks" / "results.md"]


def rounded(folder: Path) -> set[str]:
    """Every number of the files of results as a page may print it: with one to four digits, or in percent."""
    text = " ".join(path.read_text(encoding="utf-8") for path in sources(folder))
    held = {abs(float(one)) for one in re.findall(r"(?<![\w.])-?\d*\.?\d+(?:e-\d+)?", text)}
    printed = {f"{number:.{digits}f}" for number in held for digits in (1, 2, 3, 4)}
    shares = {f"{100 * number:.{digits}f}%" for number in held if number <= 2 for digits in (0, 1)}
    return printed | shares | {f"{number:g}%" for number in held} | {f"{number:.1f}%" for number in held}


@pytest.mark.parametrize("name", NAMES)
def test_every_number_of_a_page_is_in_a_file(name: str) -> None:
    text, page = (ROOT / name).read_text(encoding="utf-8"), ROOT / name
    prose = re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)", "", BLOCK.sub("", text), flags=re.DOTALL)
    held = rounded(ROOT if page.parent == ROOT else page.parent) | KNOWN
    odd = [one for one in NUMBER.findall(prose) if f"0{one}".lstrip("0") not in {number.lstrip("0") for number in held}]
    assert not odd, f"no file of results holds {odd}; keep its file, or drop the number"


TABLES = [path for path in sorted(ROOT.glob("experiments/*/results/*.json")) if path.with_suffix(".csv").exists()]


@pytest.mark.parametrize("path", TABLES, ids=lambda path: f"{path.parts[-3]}/{path.stem}")
def test_an_interval_of_a_shipped_table_is_computed_again_from_its_rows(path: Path) -> None:
    study = Study(path)
    for arm in study.means if "means" in study.record else []:
        for score in (study.scores[0], study.scores[-1]):
            assert _close(study.from_rows(arm, score), study.mean(arm, score)), (arm, score)
            if arm != study.baseline:
                found = study.from_rows(arm, score, study.baseline)
                assert _close(found, study.difference(arm, study.baseline, score)), (arm, score)


def _close(found: object, kept: object) -> bool:
    """Rows are kept with five digits."""
    return np.allclose(*([one.mean, one.low, one.high] for one in (found, kept)), atol=1e-4)


def test_rows_of_two_arms_are_paired_by_their_place(experiments: Path) -> None:
    path = experiments / "made_up" / "results" / "comparison.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(record | {"compared": {"factors": ["prompt"]}}), encoding="utf-8")
    places = [(f"prompt {at}", seed) for at in range(8) for seed in range(2)]
    rng = np.random.default_rng(0)
    hard = {place: float(rng.standard_normal()) for place in places}
    rows = [
        {"arm": arm, "prompt": place[0], "seed": place[1], "text": hard[place] + gain}
        for arm, gain, order in (("a", 0.0, places), ("b", 0.1, places[::-1]), ("c", 0.3, places))
        for place in order
    ]
    write_rows(rows, path.with_suffix(""))
    found = Study(path).difference("c", "b", "text")
    assert found.mean == pytest.approx(0.2) and found.high - found.low < 1e-6
    short = [row for row in rows if row["arm"] != "c" or row["prompt"] != "prompt 0"]
    write_rows(short, path.with_suffix(""))
    with pytest.raises(ValueError, match="other places and cannot be paired"):
        Study(path).difference("c", "b", "text")


def test_a_published_sign_is_of_the_two_arms_that_are_compared(experiments: Path) -> None:
    path = experiments / "made_up" / "results" / "comparison.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    record["published"] = {"b": {"text": -0.02}, "c": {"text": -0.01}}
    path.write_text(json.dumps(record), encoding="utf-8")
    study = Study(path)
    assert study.published("c", "text", "b") == 0.01 and study.published("c", "text", "a") == -0.01
    assert study.published("c", "image", "b") is None and study.published("d", "text", "a") is None


def test_claims_may_be_of_one_kind_of_image(tmp_path: Path) -> None:
    """Means and differences come from the rows of that kind alone."""
    (tmp_path / "results").mkdir()
    rows = [
        {"arm": arm, "prompt": prompt, "seed": 0, "number": kind, "dino": value + 0.1 * at}
        for arm, by_kind in {"a": {2: 0.1, 3: 0.5}, "b": {2: 0.4, 3: 0.2}}.items()
        for kind, value in by_kind.items()
        for at, prompt in enumerate(("grass", "snow", "room"))
    ]
    write_rows(rows, tmp_path / "results" / "comparison")
    compared = {"factors": ["prompt"], "scores": ["dino"], "by": "number"}
    means = {arm: {"dino": INTERVAL} for arm in "ab"}
    record = {"baseline": "a", "means": means, "differences": {}, "compared": compared, "seed": 0}
    (tmp_path / "results" / "comparison.json").write_text(json.dumps(record), encoding="utf-8")
    told = {
        "arms": {
            "a two": {"arm": "a", "of": "2"},
            "b two": {"arm": "b", "of": "2"},
            "b three": {"arm": "b", "of": "3"},
        },
        "claims": {"up": {"says": "b has more", "arm": "b two", "score": "dino", "asked": "up"}},
        "tables": {"means": {"scores": ["dino"]}},
    }
    (tmp_path / "claims.yaml").write_text(yaml.safe_dump(told), encoding="utf-8")
    declared = Declared(tmp_path)
    assert declared.line("up").startswith("- **Shown:** b has more: 0.300")
    means_of = re.findall(r"\| (\w three|\w two) \| (\d\.\d{3})", declared.table("means"))
    assert sorted(means_of) == [("a two", "0.200"), ("b three", "0.300"), ("b two", "0.500")]
    # Two of a against three of a, prompt by prompt; without a kind, each kind is a place of its own.
    claim = {"says": "more of them, more", "arm": "a three", "against": "a two", "score": "dino", "asked": "up"}
    told["arms"]["a three"], told["claims"] = {"arm": "a", "of": "3"}, {"more": claim}
    (tmp_path / "claims.yaml").write_text(yaml.safe_dump(told), encoding="utf-8")
    assert Declared(tmp_path).line("more") == "- **Shown:** more of them, more: 0.400 [0.400, 0.400]."
    whole = Study(tmp_path / "results" / "comparison.json")
    assert whole.from_rows("b", "dino", "a").mean == pytest.approx(0.0)
