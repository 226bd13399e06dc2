"""The desk from its page's side: cells become pictures, and the copied command draws the same file."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from src.data.notes import read_note
from src.modules.latexblend.bank import ConceptBank
from src.run.desk.queue import Queue
from tests.run.desk.desks import PAGE, asked, heard, opened, place

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    folder = tmp_path_factory.mktemp("desk")
    base, bank = place(folder)
    with opened(folder, base, banks={"rex": bank}) as (client, behind):
        heard(client, "ready")
        yield client, behind, folder, bank


def cell(name="a", version=1, **settings):
    return {"cell": name, "version": version, "settings": {"prompt": "a dog", "seed": 3, **settings}}


def of_kind(events, kind, name):
    return [event for event in events if event["kind"] == kind and event.get("cell") == name]


def test_the_copied_command_draws_the_same_bytes(desk, tmp_path):
    client, behind, _, bank = desk
    prompt = 'a <rex:0.7>, it\'s "$HOME" \\ {best}'
    told = {**cell("bytes", prompt=prompt, seed=5, **{"bank.rex": bank}), "typed": ["method.blending_start=0.8"]}
    command = asked(client, told)["commands"]["bytes"]
    [event] = of_kind(heard(client, "draw", "bytes"), "draw", "bytes")
    ours = behind.folder / "pictures" / event["picture"]
    _, script, *arguments = shlex.split(command)
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    ended = subprocess.run(
        [sys.executable, script, *arguments, f"output={tmp_path}"],
        cwd=ROOT, env=environment, capture_output=True, text=True, encoding="utf-8",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    [theirs] = tmp_path.glob("*_s0005_*.png")
    assert (theirs.name, theirs.read_bytes()) == (ours.name, ours.read_bytes())


def test_a_fader_that_moves_composes_nothing_anew_and_draws_what_a_command_would(desk):
    """Only the prompt and the seed change: the picture notes the same command as one that was composed as a whole."""
    client, behind, _, bank = desk
    for name, prompt in (("first", "a <rex>"), ("second", "a <rex:0.25> on the grass")):
        asked(client, cell(name, prompt=prompt, **{"bank.rex": bank}))
    events = heard(client, "draw", "first", "second")
    [event] = of_kind(events, "draw", "second")
    note = read_note(str(behind.folder / "pictures" / event["picture"]))
    assert (note.prompt, note.seed) == ("a <rex:0.25> on the grass", 3)
    assert "++bank.rex=" + bank in note.command


def test_progress_and_a_preview_come_before_the_picture(desk):
    client, *_ = desk
    asked(client, {**cell("seen"), "typed": ["method.sampling.num_inference_steps=6"]})
    events = heard(client, "draw", "seen")
    kinds = [event["kind"] for event in events if event.get("cell") == "seen"]
    assert kinds.index("preview") < kinds.index("draw") and "step" in kinds
    assert of_kind(events, "preview", "seen")[0]["image"].startswith("UklGR")


def test_what_cannot_be_drawn_is_said_in_the_words_of_the_command_line_and_the_desk_lives_on(desk):
    client, _, _, bank = desk
    here, missing = {"bank.rex": bank}, {"bank.rex": bank.replace("rex.s", "rix.s")}
    known = "names <tom>, but the concepts given are: <rex>; add bank.tom=PATH"
    sentences = {
        "unknown": (cell("unknown", prompt="a <tom>", **here), known),
        "long": (cell("long", prompt="very " * 200 + "red dog"), "tokens"),
        "strength": (cell("strength", prompt="a <rex:9>", **here), "a number from 0, the plain noun, to 1.5"),
        "range": ({**cell("range"), "typed": ["method.blending_start=3"]}, "method.blending_start is 3"),
        "typo": ({**cell("typo"), "typed": ["method.blending_stat=0.3"]}, "did you mean method.blending_start=0.3?"),
        "gone": (cell("gone", prompt="a <rex>", **missing), "rix.safetensors"),
    }
    asked(client, *(one for one, _ in sentences.values()))
    events = heard(client, "failed", *sentences)
    for name, (_, words) in sentences.items():
        [event] = of_kind(events, "failed", name)
        assert words in event["sentence"]
    asked(client, cell("after", seed=11))
    assert of_kind(heard(client, "draw", "after"), "draw", "after")


def test_a_dropped_picture_gives_its_settings_back(desk):
    client, behind, _, bank = desk
    asked(
        client,
        {
            **cell("kept", prompt="a <rex:0.5> at night", seed=8, **{"bank.rex": bank}),
            "typed": ["method.blending_start=0.8"],
        },
    )
    [event] = of_kind(heard(client, "draw", "kept"), "draw", "kept")
    data = (behind.folder / "pictures" / event["picture"]).read_bytes()
    found = client.post("/api/recall", content=data).json()
    assert (found["prompt"], found["seed"], found["banks"]) == ("a <rex:0.5> at night", 8, {"rex": bank})
    assert "method.blending_start=0.8" in found["typed"]
    assert (
        client.post("/api/recall", content=b"no picture").json()["error"].startswith("cannot read the image that was")
    )


def test_a_photo_of_another_program_says_so(desk, tmp_path):
    client, *_ = desk
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    answer = client.post("/api/recall", content=(tmp_path / "a.png").read_bytes())
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("the dropped picture does not say how it was drawn")


def test_concepts_are_found_with_their_photos_and_a_stranger_is_greyed(desk):
    client, behind, folder, bank = desk
    other = Path(bank).with_name("other.safetensors")
    loaded = ConceptBank.load(bank)
    ConceptBank(loaded.rows, {**loaded.metadata, "backbone_hash": "f" * 16, "backbone": "sdxl"}).save(other)
    found = {one["name"]: one for one in client.get("/api/concepts").json()["concepts"]}
    other.unlink()
    assert found["rex"]["trouble"] == "" and found["rex"]["noun"] == "dog" and found["rex"]["steps"] == 3
    assert found["other"]["trouble"].startswith("learnt with sdxl, but this desk draws with sd")
    [photo] = found["rex"]["pictures"]
    assert client.get(f"/api/shown/{photo}").headers["content-type"] == "image/webp"
    assert client.get("/api/shown/0000000000000000").status_code == 404


def test_where_a_concept_looks(desk):
    client, _, _, bank = desk
    asked(client, {**cell("look", prompt="a <rex> on the grass", **{"bank.rex": bank}), "kind": "attention"})
    [event] = of_kind(heard(client, "attention"), "attention", "look")
    assert list(event["maps"]) == ["rex"] and event["side"] == 32
    assert len(event["maps"]["rex"]) == 1024 and (min(event["maps"]["rex"]), max(event["maps"]["rex"])) == (0, 255)


def test_attention_that_is_too_large_to_show_says_so_at_once(desk, monkeypatch):
    client, _, _, bank = desk
    monkeypatch.setattr("src.modules.latexblend.attention.MAX_CELLS", 0)
    asked(client, {**cell("large", prompt="a <rex> on the grass", **{"bank.rex": bank}), "kind": "attention"})
    [event] = of_kind(heard(client, "failed", "large"), "failed", "large")
    assert event["sentence"].endswith("has more; add method.sampling.resolution=512")


def test_an_axis_is_split_as_a_sweep_is(desk):
    client, *_ = desk
    told = {"page": PAGE, "key": "method.sampling.guidance_scale", "values": "1,3,5"}
    words = client.post("/api/axis", json=told).json()["words"]
    assert words == [f"method.sampling.guidance_scale={value}" for value in (1, 3, 5)]
    many = client.post("/api/axis", json={**told, "values": "range(1,1000)"})
    assert "more than 64 values" in many.json()["error"]
    refused = client.post("/api/axis", json={**told, "key": "paths.root", "values": "a,b"})
    assert refused.json()["error"] == "paths.root is set by the desk itself; type it behind python generate.py instead"


def test_a_page_finds_again_what_it_kept_and_a_new_one_what_the_last_did(desk):
    client, *_ = desk
    client.post(f"/api/state?page={PAGE}", json={"mix": {"prompt": "a <script>"}})
    assert client.get(f"/api/state?page={PAGE}").json()["mix"] == {"prompt": "a <script>"}
    assert client.get("/api/state?page=aaaaaaaaaa").json()["mix"] == {"prompt": "a <script>"}
    assert client.get("/api/state?page=../../../x").status_code == 400
    assert client.post(f"/api/state?page={PAGE}", json=["x"]).status_code == 400
    assert client.post(f"/api/state?page={PAGE}", json={"mix": "x" * 2**19}).status_code == 400


def test_a_newer_request_of_a_cell_takes_the_place_of_an_older(desk):
    client, behind, *_ = desk
    assert isinstance(behind.queue, Queue)
    for version in range(1, 9):
        asked(client, cell("moved", version, seed=100 + version))
    events = heard(client, "draw", "moved", version=8)
    drawn = of_kind(events, "draw", "moved")
    assert drawn[-1]["version"] == 8
    assert len(drawn) < 8
