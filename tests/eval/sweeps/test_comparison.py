import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from src.eval.results.results import read_rows, write_rows
from src.eval.statistics.bootstrap import bootstrap_mean
from src.eval.sweeps.comparison import compare_points
from src.eval.sweeps.page import prompt_grids
from src.eval.sweeps.points import Point, finished, whole_arms

PROMPTS, CONCEPTS, SEEDS = [f"prompt {n}" for n in range(8)], [f"subject {n}" for n in range(7)], [0, 1]
PUBLISHED = [{"clip_t": 0.3, "dino": 0.6}, {"clip_t": 0.4, "dino": 0.7}]


def write_point(
    sweep: Path, number: int, setting: str, gain: float, profile: str = "world", training_seed: int | None = None
) -> None:
    """A point whose dino is ``gain`` above a baseline that varies with prompt, concept and seed."""
    folder = sweep / str(number)
    (folder / ".hydra").mkdir(parents=True)
    seeds = [] if training_seed is None else [f"++training.seed={training_seed}"]
    (folder / ".hydra" / "overrides.yaml").write_text(
        yaml.safe_dump(["sweep=x", f"+method.{setting}", *seeds]), encoding="utf-8"
    )
    rng, rows = np.random.default_rng(0), []
    for prompt in PROMPTS:
        for concept in CONCEPTS:
            for seed in SEEDS:
                row = {"concept": concept, "arm": "concept", "prompt": prompt, "seed": seed, "file": "one.png"}
                text, image = 0.3 + 0.1 * rng.standard_normal(2)
                rows.append(row | {"clip_t": text, "dino": image + gain + 0.01 * rng.standard_normal()})
    control = rows[0] | {"arm": "control", "dino": 9.0}
    write_rows([control, *rows], folder / "per_image")
    compared = {"rows": {"arm": "concept"}, "factors": ["prompt", "concept"], "scores": ["clip_t", "dino"]}
    compared["harmonic"] = ["clip_t", "dino"]
    encoders = {"clip": "a", "dino": "b"}
    metrics = {"profile": profile, "encoders": encoders, "rules": {}, "compared": compared}
    (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (16, 16), "red").save(tmp_path / "images" / "one.png")
    write_point(tmp_path, 0, "base_flow=true", 0.2)
    return tmp_path


def test_differences_are_paired_and_signed(sweep: Path) -> None:
    write_point(sweep, 1, "base_flow=false", 0.1)
    Image.new("RGB", (8, 8)).save(sweep / "0" / "grid_rex.png")
    compare_points(sweep, "Base flow", PUBLISHED)
    record = json.loads((sweep / "comparison.json").read_text(encoding="utf-8"))
    assert record["baseline"] == "method.base_flow=true"
    dino = record["differences"]["method.base_flow=false dino"]
    assert dino["interval"]["mean"] == pytest.approx(-0.1, abs=1e-6)
    assert dino["interval"]["high"] < 0 and dino["adjusted_p"] < 0.05 and dino["wins"]["lost"] == 8
    assert record["differences"]["method.base_flow=false clip_t"]["interval"]["mean"] == pytest.approx(0, abs=1e-9)
    assert record["harmonic_differences"]["method.base_flow=false"]["high"] < 0
    table = (sweep / "table.md").read_text(encoding="utf-8")
    assert "+0.100 | opposite" in table and "+0.100 | undecided" in table
    assert record["published"] == {"method.base_flow=false": {"clip_t": 0.1, "dino": 0.1}}
    page = (sweep / "report.html").read_text(encoding="utf-8")
    assert "More of method.base_flow=true, beside its references" in page and "<h2>rex</h2>" in page
    places = [page.index(text) for text in ('class="grid', 'class="plots"', "<table>", "Lowest dino", "Profile")]
    assert places == sorted(places), "pictures first, then scores, then the worst of them"
    assert "Base flow" in page and "data:image/" in page and 'src="http' not in page
    assert (sweep / "figure.png").stat().st_size > 1000


def test_any_point_can_be_held_against_any_other(sweep: Path) -> None:
    write_point(sweep, 1, "base_flow=false", 0.1)
    write_point(sweep, 2, "base_flow=null", 0.4)
    compare_points(sweep, "Base flow", [*PUBLISHED, {"clip_t": 0.4, "dino": 0.8, "harmonic": 0.5}])
    table = (sweep / "table.md").read_text(encoding="utf-8")
    (line,) = [line for line in table.splitlines() if "method.base_flow=null, less method.base_flow=false" in line]
    clip_t, dino, harmonic = line.split("|")[2:5]
    assert dino.strip().startswith("0.300 [0.") and dino.strip().endswith("; +0.100, shown")
    assert clip_t.strip() == "0.000 [0.000, 0.000]; +0.000, none"
    assert float(harmonic.split()[0]) > 0.05 and ";" not in harmonic
    assert "less method.base_flow=true" not in table


def test_two_points_have_no_other_pairs(sweep: Path) -> None:
    write_point(sweep, 1, "base_flow=false", 0.1)
    compare_points(sweep)
    assert "other pairs" not in (sweep / "table.md").read_text(encoding="utf-8")


def test_rows_that_every_interval_can_be_computed_from_lie_beside_the_comparison(sweep: Path) -> None:
    write_point(sweep, 1, "base_flow=false", 0.1)
    compare_points(sweep)
    record = json.loads((sweep / "comparison.json").read_text(encoding="utf-8"))
    with (sweep / "comparison.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert set(rows[0]) == {"arm", "prompt", "concept", "seed", "clip_t", "dino"}
    theirs = [row for row in rows if row["arm"] == "method.base_flow=true"]
    groups = [[row[factor] for row in theirs] for factor in record["compared"]["factors"]]
    found = bootstrap_mean([float(row["dino"]) for row in theirs], groups, record["seed"])
    kept = record["means"]["method.base_flow=true"]["dino"]
    assert found.as_dict() == pytest.approx(kept, abs=1e-5) and kept["low"] < kept["mean"] - 1e-3


def test_a_failed_point_is_named_and_left_out(sweep: Path) -> None:
    write_point(sweep, 1, "base_flow=false", 0.1)
    (sweep / "1" / "metrics.json").unlink()
    (sweep / "1" / "error.txt").write_text("no room on the disk\n", encoding="utf-8")
    compare_points(sweep)
    failed = json.loads((sweep / "comparison.json").read_text(encoding="utf-8"))["failed"]
    assert failed == {"method.base_flow=false": "no room on the disk"}
    assert "no room on the disk" in (sweep / "table.md").read_text(encoding="utf-8")


def age(folder: Path, nanoseconds: int) -> None:
    """Let everything in a point's folder have been written so long before the sweep was started at 10 ** 18."""
    for path in folder.rglob("*"):
        os.utime(path, ns=(10**18 - nanoseconds,) * 2)


def test_what_an_earlier_start_left_counts_as_nothing(sweep: Path) -> None:
    write_point(sweep, 1, "base_flow=false", 0.1, profile="dreambooth")
    write_point(sweep, 2, "base_flow=false", 0.1)
    age(sweep / "1", 1)
    age(sweep / "2", 0)
    compare_points(sweep, since=10**18)
    record = json.loads((sweep / "comparison.json").read_text(encoding="utf-8"))
    assert list(record["means"]) == ["method.base_flow=true", "method.base_flow=false"]
    assert record["failed"] == {}
    assert finished(sweep) == [sweep / "0", sweep / "1", sweep / "2"]
    assert finished(sweep, 10**18) == [sweep / "0", sweep / "2"]


def test_a_point_that_began_again_has_not_finished(sweep: Path) -> None:
    write_point(sweep, 1, "base_flow=false", 0.1)
    age(sweep / "1", 1)
    os.utime(sweep / "1" / ".hydra" / "overrides.yaml")
    compare_points(sweep, since=10**18)
    failed = json.loads((sweep / "comparison.json").read_text(encoding="utf-8"))["failed"]
    assert failed == {"method.base_flow=false": "has not finished"}


def test_published_means_are_those_of_the_points_own_places(sweep: Path) -> None:
    write_point(sweep, 1, "base_flow=false", 0.1)
    write_point(sweep, 2, "rank=8", 0.3)
    (sweep / "1" / "metrics.json").unlink()
    compare_points(sweep, published=[*PUBLISHED, {"dino": 0.65}])
    assert "+0.050 | shown" in (sweep / "table.md").read_text(encoding="utf-8")


def test_published_means_that_agree_have_no_sign(sweep: Path) -> None:
    write_point(sweep, 1, "rank=8", 0.3)
    compare_points(sweep, published=[{"dino": 0.6}, {"dino": 0.6}])
    assert "+0.000 | none" in (sweep / "table.md").read_text(encoding="utf-8")


def test_the_harmonic_of_scores_that_are_not_positive_is_zero(sweep: Path) -> None:
    write_point(sweep, 1, "base_flow=false", -1.0)
    compare_points(sweep)
    record = json.loads((sweep / "comparison.json").read_text(encoding="utf-8"))
    assert record["means"]["method.base_flow=false"]["dino"]["high"] < 0
    assert record["means"]["method.base_flow=false"]["harmonic"] == {"mean": 0.0, "low": 0.0, "high": 0.0}


def test_every_way_to_join_the_two_scores_is_told(sweep: Path) -> None:
    write_point(sweep, 1, "base_flow=false", 0.1)
    compare_points(sweep)
    (heading, *_) = [
        line for line in (sweep / "table.md").read_text(encoding="utf-8").splitlines() if "per image" in line
    ]
    assert heading == "|  | of the means | mean per image | of min-max means (ours) | of z-scored means (ours) |"
    # CLIP-T is the same in both points, which leaves nothing to spread.
    assert "|  |  |" in (sweep / "table.md").read_text(encoding="utf-8")


def test_points_of_two_profiles_are_not_compared(sweep: Path) -> None:
    write_point(sweep, 1, "base_flow=false", 0.1, profile="dreambooth")
    with pytest.raises(ValueError, match="profile"):
        compare_points(sweep)


def test_points_with_other_seeds_are_not_paired(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.SEEDS", [0, 2])
    write_point(sweep, 1, "base_flow=false", 0.1)
    with pytest.raises(ValueError, match="cannot be paired"):
        compare_points(sweep)


def test_a_sweep_without_a_finished_point_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no point of the sweep"):
        compare_points(tmp_path)


GAINS = {("last", 0): 0.0, ("last", 1): 0.01, ("last", 2): 0.02, ("all", 0): 0.1, ("all", 1): 0.25, ("all", 2): 0.1}


@pytest.fixture
def trainings(sweep: Path) -> Path:
    """Two arms of three trainings; from the first to the second dino grows by .1, .24 and .08, by .14 in the mean."""
    shutil.rmtree(sweep / "0")
    for number, ((features, seed), gain) in enumerate(GAINS.items()):
        write_point(sweep, number, f"features={features}", gain, training_seed=seed)
    return sweep


def test_points_that_differ_in_their_training_seed_are_one_arm(trainings: Path) -> None:
    compare_points(trainings, published=PUBLISHED)
    record = json.loads((trainings / "comparison.json").read_text(encoding="utf-8"))
    assert list(record["means"]) == ["method.features=last", "method.features=all"]
    assert record["training_seeds"] == [0, 1, 2] and record["failed"] == {}
    # The noise of a place is the same in every point, so only gains are left.
    differences = [GAINS["all", seed] - GAINS["last", seed] for seed in range(3) for _ in PROMPTS]
    prompts, seeds = [PROMPTS * 3, [seed for seed in range(3) for _ in PROMPTS]]
    by_hand = bootstrap_mean(differences, [prompts, seeds])
    found = record["differences"]["method.features=all dino"]
    assert found["interval"]["mean"] == pytest.approx(0.14, abs=1e-6)
    assert [found["interval"][end] for end in ("low", "high")] == pytest.approx([by_hand.low, by_hand.high], abs=1e-3)
    assert found["wins"] == {"won": 8, "lost": 0, "tied": 0, "num": 8}
    # Prompts and subjects alone would leave nothing to doubt.
    assert found["p"] == 0.25 and found["interval"]["high"] - found["interval"]["low"] > 0.05
    text = (trainings / "table.md").read_text(encoding="utf-8")
    assert "336 images of 3 trainings each" in text and "+0.100 | shown" in text
    assert "seeds; 3 training seeds are too few for a test" in text
    page = (trainings / "report.html").read_text(encoding="utf-8")
    assert all(f"training_seed {seed}: a line per point" in page for seed in range(3))


def test_an_arm_with_a_failed_training_seed_is_named_and_left_out(trainings: Path) -> None:
    write_point(trainings, 6, "features=embed", 0.3, training_seed=0)
    (trainings / "4" / "metrics.json").unlink()
    (trainings / "4" / "error.txt").write_text("no room on the disk\n", encoding="utf-8")
    compare_points(trainings)
    record = json.loads((trainings / "comparison.json").read_text(encoding="utf-8"))
    assert list(record["means"]) == ["method.features=last"]
    assert record["failed"] == {
        "method.features=all": "training seed 1: no room on the disk",
        "method.features=embed": "training seed 1: has not finished; training seed 2: has not finished",
    }


def test_no_arm_is_whole_while_seeds_are_missing_from_all(trainings: Path) -> None:
    for number in (1, 4):
        (trainings / str(number) / "metrics.json").unlink()
    assert whole_arms(trainings) == {}
    with pytest.raises(ValueError, match="no point of the sweep"):
        compare_points(trainings)


def test_trainings_of_one_arm_alone_have_means(sweep: Path) -> None:
    write_point(sweep, 1, "base_flow=true", 0.4, training_seed=1)
    compare_points(sweep)
    record = json.loads((sweep / "comparison.json").read_text(encoding="utf-8"))
    assert list(record["means"]) == ["method.base_flow=true"] and record["training_seeds"] == [0, 1]


def test_grids_show_prompts_evenly_whatever_their_seeds_are(sweep: Path) -> None:
    rows = [{"prompt": f"{at}", "training_seed": 0, "seed": at, "file": "one.png"} for at in range(25)]
    metrics = {"compared": {"factors": ["prompt", "training_seed"]}}
    grids = prompt_grids(sweep / "images", [Point(sweep / "0", "one", metrics, rows)])
    # Every third prompt.
    assert list(grids) == ["training_seed 0"] and grids["training_seed 0"].columns == 9


def tell_kinds(folder: Path, gain: float) -> None:
    """The first half of the prompts is of the kind ``easy``; the others have ``gain`` more."""
    rows = read_rows(folder / "per_image")
    for row in rows:
        easy = row["prompt"] in PROMPTS[:4]
        row |= {"kind": "easy" if easy else "hard", "dino": row["dino"] + (0.0 if easy else gain)}
    write_rows(rows, folder / "per_image")
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    metrics["compared"] |= {"by": "kind", "rows": {"arm": "concept"}}
    (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")


def test_kinds_of_images_are_compared_one_by_one(sweep: Path) -> None:
    write_point(sweep, 1, "base_flow=false", 0.2)
    tell_kinds(sweep / "0", 0.0)
    tell_kinds(sweep / "1", 0.3)
    compare_points(sweep)
    lines = (
        (sweep / "table.md")
        .read_text(encoding="utf-8")
        .split("Differences from method.base_flow=true, of each kind")[1]
        .splitlines()
    )
    dino = {line.split("|")[1].strip(): line.split("|")[4] for line in lines if "base_flow=false" in line[:40]}
    assert dino["easy"].split()[0] == "0.000" and dino["hard"].split()[0] == "0.300"
    assert not (sweep / "curves.png").exists()


def test_kinds_that_are_numbers_make_curves_and_may_share_their_places(
    sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one concept and two in the same prompt and seed; the intervals of each are those of its rows."""
    for number, gain in enumerate((0.2, 0.3)):
        write_point(sweep, number, f"merge={number}", gain) if number else None
        rows, metrics = read_rows(sweep / str(number) / "per_image"), sweep / str(number) / "metrics.json"
        again = [row | {"number": kind, "dino": row["dino"] + int(kind)} for kind in "12" for row in rows[1:]]
        write_rows(again, sweep / str(number) / "per_image")
        record = json.loads(metrics.read_text(encoding="utf-8"))
        record["compared"] |= {"by": "number"}
        metrics.write_text(json.dumps(record), encoding="utf-8")
    seen: list = []
    monkeypatch.setattr(
        "src.eval.sweeps.comparison.curves_figure", lambda *told: seen.append(told) or Image.new("RGB", (8, 8))
    )
    compare_points(sweep)
    assert (sweep / "curves.png").exists()
    by, numbers, means = seen[0]
    assert (by, numbers) == ("number", [1, 2])
    ours = means["method.merge=1"]["dino"]
    assert ours[1].mean - ours[0].mean == pytest.approx(1.0)
    rows = read_rows(sweep / "comparison")
    assert len(rows) == 2 * 2 * len(PROMPTS) * len(CONCEPTS) * len(SEEDS)
    of_two = [row for row in rows if (row["arm"], str(row["number"])) == ("method.merge=1", "2")]
    assert ours[1] == bootstrap_mean(
        [row["dino"] for row in read_rows(sweep / "1" / "per_image") if str(row["number"]) == "2"],
        [[row[factor] for row in of_two] for factor in ("prompt", "concept")],
        0,
    )
