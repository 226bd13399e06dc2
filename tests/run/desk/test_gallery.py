"""The gallery: what folders of runs hold, pictures side by side, blind votes; and that no address leads out of them."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from src.data.files import save_png
from src.data.notes import chunks
from src.data.page import STYLESHEET
from src.data.request import Request
from src.eval.grid import Grid
from src.eval.results.results import write_rows
from src.eval.statistics.paired import paired_difference
from src.eval.votes import main as votes_main
from src.eval.votes import read_votes
from src.run.desk.app import Start, application
from src.run.desk.gallery import differences
from src.run.desk.runs import Cell
from src.run.desk.security import Guard

EVIL = "<img src=x onerror=alert(1)> & \"'"
"""A name that a folder, a prompt or a setting may have."""
DRAWN = f"generate/{EVIL}/2026-01-02_00-00-00"
PROMPTS = ["a {} on the grass", "a {} in the snow", f"a {{}} {EVIL}"]


def noise(number: int, side: int = 16) -> Image.Image:
    return Image.frombytes("RGB", (side, side), bytes((number * 37 + at) % 256 for at in range(side * side * 3)))


def told(folder: Path, *settings: str) -> Path:
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text(json.dumps(list(settings)), encoding="utf-8")
    return folder


def evaluated(folder: Path, images: Path, gain: float, number: int, *settings: str) -> Path:
    """An evaluation of two seeds of each prompt, whose method scores ``gain`` more than its control."""
    rows = []
    for arm, more in (("control", 0.0), ("concept", gain)):
        for at, prompt in enumerate(PROMPTS):
            for seed in (0, 1):
                name = f"{arm}_{number}_{at}_{seed}.png"
                save_png(noise(len(rows) + 10 * number), images / name)
                place = {"concept": "rex", "arm": arm, "prompt": prompt, "seed": seed, "file": name}
                rows.append({**place, "clip_t": 0.5 + 0.01 * at, "dino": 0.1 * at + more + 0.01 * seed})
    rows.append({**rows[0], "arm": "ceiling", "file": "", "clip_t": ""})
    told(folder, *settings)
    compared = {"rows": {"arm": "concept"}, "factors": ["prompt", "concept"], "scores": ["clip_t", "dino"]}
    Grid([noise(70), noise(71), noise(72)], 3, ["reference of rex", "a dog", "reference of tom"]).save(
        folder / "grid_rex.png"
    )
    (folder / "metrics.json").write_text(json.dumps({"profile": "world", "compared": compared}), encoding="utf-8")
    write_rows(rows, folder / "per_image")
    return folder


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run of each kind, as the entry points leave them."""
    root = tmp_path_factory.mktemp("template") / "outputs"
    training = told(root / "train" / "concept_rex" / "2026-01-01_00-00-00", "trainer.max_steps=20", f"name={EVIL}")
    for step in (0, 10, 20):
        captions = [f"a <rex> on the grass | seed {seed}" for seed in (0, 1)]
        Grid([noise(step), noise(step + 1)], 2, captions).save(training / "samples" / f"step-{step:06d}.png")
    Grid([noise(90 + at) for at in range(7)], 7).save(training / "samples" / "references.png")
    drawn = told(root / DRAWN, "prompt='a <rex:0.5>'")
    for seed in (0, 1):
        request = Request(f"a <rex:0.5> {EVIL}", seed)
        save_png(noise(seed), drawn / f"{seed}.png", chunks(request, (16, 16), {"backbone": "tiny"}, {}))
    Grid([noise(0), noise(1)], 2).save(drawn / "grid.png")
    single = root / "eval" / "concept" / "2026-01-03_00-00-00"
    evaluated(single, single / "images", 0.2, 1)
    sweep = root / "sweep" / "strength" / "abcdef01"
    for number, strength in enumerate((1.0, 0.5)):
        evaluated(sweep / str(number), sweep / "images", 0.3 * strength, 2 + number, f"+protocol.strength={strength}")
    return root


@pytest.fixture
def root(template: Path, tmp_path: Path) -> Path:
    return shutil.copytree(template, tmp_path / "outputs")


@pytest.fixture
def table(root: Path) -> Path:
    return root / "desk" / "votes.csv"


class NoWorker:
    """Draws nothing: the gallery asks for no model."""

    def __init__(self, arguments, on_message):
        self.arguments = arguments

    def send(self, *message):
        pass

    def stop(self):
        pass


def application_of(root: Path) -> Guard:
    return application(Start(root, [], {}, "world_sd"), NoWorker)[0]


@pytest.fixture
def client(root: Path) -> Iterator[TestClient]:
    with TestClient(application_of(root), base_url="http://127.0.0.1:7860") as client:
        yield client


def by_kind(client: TestClient) -> dict[str, dict]:
    return {run["kind"]: run for run in client.get("/api/gallery/runs").json()["runs"]}


def cells(client: TestClient, series: dict) -> list[dict]:
    return client.get(f"/api/gallery/series/{series['id']}").json()["cells"]


def test_every_kind_of_run_is_listed_with_its_settings_series_and_cover(client: TestClient) -> None:
    runs = by_kind(client)
    assert {kind: [one["label"] for one in run["series"]] for kind, run in runs.items()} == {
        "train": ["step 0", "step 10", "step 20"],
        "generate": ["pictures"],
        "eval": ["concept", "control"],
        "sweep": ["protocol.strength=1.0", "protocol.strength=0.5"],
    }
    assert [one["step"] for one in runs["train"]["series"]] == [0, 10, 20]
    assert runs["train"]["settings"] == ["trainer.max_steps=20", f"name={EVIL}"]
    assert {kind: len(run["cover"]) for kind, run in runs.items()} == {"train": 2, "generate": 2, "eval": 4, "sweep": 2}
    assert all(run["trouble"] == "" for run in runs.values()) and runs["generate"]["name"] == EVIL


def test_cells_say_what_was_asked_for_and_what_it_scored(client: TestClient) -> None:
    runs = by_kind(client)
    (first, second) = cells(client, runs["generate"]["series"][0])
    assert (first["prompt"], first["seed"], first["scores"]) == (f"a <rex:0.5> {EVIL}", "0", {})
    scored = cells(client, runs["eval"]["series"][0])
    assert len(scored) == 6 and scored[0]["scores"] == pytest.approx({"clip_t": 0.5, "dino": 0.2})
    assert [one["of"] for one in scored] == ["rex"] * 6
    assert [one["prompt"] for one in cells(client, runs["train"]["series"][1])] == ["a <rex> on the grass"] * 2


def test_pictures_are_the_files_and_the_cells_of_grids(client: TestClient, root: Path, tmp_path: Path) -> None:
    runs = by_kind(client)
    drawn = cells(client, runs["generate"]["series"][0])[1]["picture"]
    answer = client.get(f"/api/gallery/pictures/{drawn}")
    assert answer.content == (root / DRAWN / "1.png").read_bytes()
    cell = cells(client, runs["train"]["series"][1])[1]["picture"]
    for small in ("", "?small=1"):
        (tmp_path / "cell.png").write_bytes(client.get(f"/api/gallery/pictures/{cell}{small}").content)
        with Image.open(tmp_path / "cell.png") as image:
            assert image.size == (192, 192) and image.resize((16, 16), 0).tobytes() == noise(11).tobytes()


def test_pictures_stand_beside_what_they_are_held_against(client: TestClient, tmp_path: Path) -> None:
    runs = by_kind(client)
    found = {
        kind: client.get(f"/api/gallery/series/{run['series'][0]['id']}").json()["references"]
        for kind, run in runs.items()
    }
    assert {kind: len(pictures) for kind, pictures in found.items()} == {
        "train": 4,
        "generate": 0,
        "eval": 1,
        "sweep": 1,
    }
    for kind, number in (("train", 90), ("eval", 70), ("sweep", 70)):
        (tmp_path / "cell.png").write_bytes(client.get(f"/api/gallery/pictures/{found[kind][0]}").content)
        with Image.open(tmp_path / "cell.png") as image:
            assert image.resize((16, 16), 0).tobytes() == noise(number).tobytes()


def test_a_run_is_read_again_when_it_has_changed(client: TestClient, root: Path) -> None:
    before = by_kind(client)["train"]
    assert by_kind(client)["train"] == before
    samples = root / "train/concept_rex/2026-01-01_00-00-00/samples"
    Grid([noise(3)], 1, ["a <rex> | seed 0"]).save(samples / "step-000030.png")
    assert [one["label"] for one in by_kind(client)["train"]["series"]][-1] == "step 30"


def test_what_is_damaged_or_unfinished_is_told_in_its_place(client: TestClient, root: Path) -> None:
    (root / "eval/concept/2026-01-03_00-00-00/metrics.json").write_text("{", encoding="utf-8")
    told(root / "eval" / "concept" / "2026-01-04_00-00-00")
    (root / "train" / "empty" / "2026-01-01_00-00-00").mkdir(parents=True)
    (root / "train" / "concept_rex" / "2026-01-01_00-00-00" / "samples" / "step-000020.png").write_bytes(b"no image")
    runs = client.get("/api/gallery/runs").json()["runs"]
    troubles = {f"{run['name']} {run['date']}": run["trouble"] for run in runs if run["trouble"]}
    assert sorted(troubles) == [
        "concept 2026-01-03_00-00-00", "concept 2026-01-04_00-00-00", "concept_rex 2026-01-01_00-00-00",
    ]  # fmt: skip
    assert "may be truncated" in troubles["concept 2026-01-03_00-00-00"]
    assert "there is no" in troubles["concept 2026-01-04_00-00-00"]


def test_two_series_are_paired_by_place_whatever_the_strength(client: TestClient) -> None:
    first, second = (one["id"] for one in by_kind(client)["sweep"]["series"])
    found = client.get(f"/api/gallery/compared?first={second}&second={first}").json()
    assert len(found["pairs"]) == 6 and found["alone"] == 0
    assert all(pair["first"]["prompt"] == pair["second"]["prompt"] for pair in found["pairs"])
    assert found["differences"]["dino"] == pytest.approx({"mean": 0.15, "low": 0.15, "high": 0.15})
    assert found["differences"]["clip_t"]["mean"] == pytest.approx(0)


def test_differences_are_those_of_sweeps_over_prompts_and_subjects() -> None:
    dice = np.random.default_rng(0)
    places = [(f"a {{}} {prompt}", str(seed), of) for prompt in range(4) for seed in (0, 1) for of in ("rex", "tom")]
    ours, theirs = ([Cell(*place, Path(), None, {"dino": dice.random()}) for place in places] for _ in range(2))
    pairs = [*zip(ours, theirs, strict=True), (Cell("a", "0", "rex", Path()), Cell("a", "0", "rex", Path()))]
    groups = [[prompt for prompt, _, _ in places], [of for _, _, of in places]]
    first, second = ([cell.scores["dino"] for cell in cells] for cells in (ours, theirs))
    assert differences(pairs) == {"dino": paired_difference(second, first, groups, seed=0).as_dict()}


@pytest.mark.parametrize("other", ["a <rex:0.5> on the grass", "a <rex : 1.2> on the grass", "a <tom> on the grass"])
def test_a_place_does_not_ask_how_strongly_a_concept_is_meant(other: str) -> None:
    first, second = (Cell(prompt, "0", "", Path()) for prompt in ("a <rex> on the grass", other))
    assert (first.place == second.place) == ("rex" in other)


def test_what_has_nothing_in_common_is_refused(client: TestClient) -> None:
    runs = by_kind(client)
    first, second = runs["train"]["series"][0]["id"], runs["eval"]["series"][0]["id"]
    answer = client.get(f"/api/gallery/compared?first={first}&second={second}")
    assert answer.status_code == 400
    assert answer.json()["error"] == (
        "train/concept_rex/2026-01-01_00-00-00 step 0 and eval/concept/2026-01-03_00-00-00 concept have no prompt and "
        "seed in common, so there is nothing to hold side by side; choose two that drew the same prompts"
    )


def voted(client: TestClient, first: str, second: str, preferred: str, rater: str = "anna") -> int:
    """Vote on all pairs for what is drawn from the second series; return how many there were."""
    good = {one["picture"] for one in client.get(f"/api/gallery/series/{preferred}").json()["cells"]}
    asked = {"first": first, "second": second, "rater": rater, "question": "looks better"}
    for number in range(100):
        trial = client.get("/api/gallery/trial", params=asked).json()
        if not trial["left"]:
            return number
        choice = "left" if trial["sides"][0] in good else "right"
        answer = client.post("/api/gallery/votes", json={**asked, "sides": trial["sides"], "choice": choice})
        assert answer.status_code == 200, answer.json()
    raise AssertionError("votes do not end")


def test_votes_become_the_table_that_the_statistics_read(
    client: TestClient, table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (one["id"] for one in by_kind(client)["sweep"]["series"])
    assert voted(client, first, second, second, "anna") == voted(client, second, first, second, "=bo") == 6
    votes = read_votes(table)
    winner = "sweep/strength/abcdef01 protocol.strength=0.5"
    assert len(votes) == 12 and {vote.choice for vote in votes} == {winner}
    assert {vote.rater for vote in votes} == {"anna", "'=bo"}, "no spreadsheet takes it for a formula"
    assert {(vote.case, vote.seed) for vote in votes} == {
        (f"{prompt} (rex)", seed) for prompt in PROMPTS for seed in "01"
    }
    (found,) = client.get("/api/gallery/votes").json()["preferences"]
    lost = found["other"] == winner
    assert (found["lost"] if lost else found["won"]) == 12 and found["word"] == ("not " if lost else "") + "preferred"
    assert found["share"] == {"mean": float(not lost), "low": float(not lost), "high": float(not lost)}
    monkeypatch.setattr("sys.argv", ["votes", str(table)])
    votes_main()
    assert found["word"] in capsys.readouterr().out


def test_nothing_tells_which_side_is_which_and_sides_change(client: TestClient) -> None:
    first, second = (one["id"] for one in by_kind(client)["sweep"]["series"])
    ours = {one["picture"] for one in cells(client, {"id": first})}
    left = []
    for rater in map(str, range(40)):
        trial = client.get("/api/gallery/trial", params={"first": first, "second": second, "rater": rater}).json()
        assert trial.keys() == {"left", "number", "prompt", "of", "sides", "references"}
        left.append(trial["sides"][0] in ours)
    assert 8 < sum(left) < 32


def test_pictures_that_two_arms_share_are_not_voted_on(client: TestClient, root: Path) -> None:
    sweep = root / "sweep" / "strength" / "abcdef01"
    for path in sweep.glob("images/concept_2_0_*.png"):
        path.unlink()
    for number in (0, 1):
        table = sweep / str(number) / "per_image.jsonl"
        table.write_text(table.read_text(encoding="utf-8").replace("concept_2_0_", "concept_3_0_"), encoding="utf-8")
    first, second = (one["id"] for one in by_kind(client)["sweep"]["series"])
    assert len(client.get(f"/api/gallery/compared?first={first}&second={second}").json()["pairs"]) == 6
    assert voted(client, first, second, second) == 4


@pytest.mark.parametrize(
    ("change", "answer"),
    [
        ({"choice": "both"}, "a vote is one of left, right, tie on a pair that was shown; reload the page"),
        ({"sides": ["x", "y"]}, "a vote is one of left, right, tie on a pair that was shown; reload the page"),
        ({"sides": "xy"}, "a vote names the pictures that stood on both sides; reload the page"),
        ({"rater": " "}, "type who you are, a name or initials; the interval is over raters as well as prompts"),
        ({"rater": "a" * 300}, "rater is a text of at most 200 letters on one line; type it shorter"),
        ({"question": "a\nb"}, "question is a text of at most 200 letters on one line; type it shorter"),
        ({"first": "0" * 16}, "there are no such pictures any more; reload the page"),
    ],
)
def test_a_vote_that_makes_no_sense_is_refused(client: TestClient, table: Path, change: dict, answer: str) -> None:
    first, second = (one["id"] for one in by_kind(client)["sweep"]["series"])
    asked = {"first": first, "second": second, "rater": "anna", "question": ""}
    sides = client.get("/api/gallery/trial", params=asked).json()["sides"]
    refused = client.post("/api/gallery/votes", json={**asked, "sides": sides, "choice": "left", **change})
    assert (refused.status_code, refused.json()["error"]) == (400, answer)
    assert not table.exists()


def test_nobody_votes_twice_on_a_pair(client: TestClient, table: Path) -> None:
    first, second = (one["id"] for one in by_kind(client)["sweep"]["series"])
    asked = {"first": first, "second": second, "rater": "anna", "question": ""}
    vote = {**asked, "sides": client.get("/api/gallery/trial", params=asked).json()["sides"], "choice": "tie"}
    assert client.post("/api/gallery/votes", json=vote).status_code == 200
    again = client.post("/api/gallery/votes", json=vote)
    assert again.status_code == 400 and "twice; keep one of the two" in again.json()["error"]
    assert [one.choice for one in read_votes(table)] == ["tie"]


def test_no_address_and_no_table_leads_out_of_the_folders(client: TestClient, root: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    save_png(noise(9), secret / "secret.png", chunks(Request("a secret", 0), (16, 16), {}, {}))
    for name in ("../../secret/secret.png", "..%2F..%2Fsecret%2Fsecret.png", str(secret / "secret.png"), "%00"):
        assert client.get(f"/api/gallery/pictures/{name}").status_code in (400, 404)
        assert client.get(f"/api/gallery/series/{name}").status_code in (400, 404)
    # A folder, a file and a row of a table that lead out.
    (root / DRAWN).with_name("linked").symlink_to(secret, target_is_directory=True)
    (root / DRAWN / "linked.png").symlink_to(secret / "secret.png")
    single = root / "eval" / "concept" / "2026-01-03_00-00-00"
    rows = [json.loads(line) for line in (single / "per_image.jsonl").read_text(encoding="utf-8").splitlines()]
    rows[-2]["file"] = "../../../../../secret/secret.png"
    (single / "per_image.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (single / "images" / "a").mkdir()
    runs = client.get("/api/gallery/runs").json()["runs"]
    assert "linked" not in {run["date"] for run in runs}
    listed = {run["kind"]: run for run in runs}
    assert [one["seed"] for one in cells(client, listed["generate"]["series"][0])] == ["0", "1"]
    assert len(cells(client, listed["eval"]["series"][0])) == 5


def test_a_picture_that_was_swapped_for_a_link_is_not_followed(client: TestClient, root: Path, tmp_path: Path) -> None:
    picture = cells(client, by_kind(client)["generate"]["series"][0])[0]["picture"]
    save_png(noise(9), tmp_path / "secret.png")
    path = root / DRAWN / "0.png"
    path.unlink()
    path.symlink_to(tmp_path / "secret.png")
    answer = client.get(f"/api/gallery/pictures/{picture}")
    assert answer.status_code == 400 and answer.json()["error"] == "there is no such picture any more; reload the page"


def test_the_look_is_that_of_the_reports_and_styles_come_from_files(client: TestClient) -> None:
    look = client.get("/page.css")
    assert look.headers["content-type"].startswith("text/css") and look.text == STYLESHEET
    page = client.get("/gallery.html")
    assert "style-src 'self'" in page.headers["content-security-policy"] and "style=" not in page.text
    assert 'href="gallery.html"' in client.get("/").text
