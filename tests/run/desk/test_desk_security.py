"""Who may talk to the desk, what files it may touch, and what it takes: strangers are tried in each place."""

import io
from pathlib import Path

import pytest
from PIL import Image
from starlette.testclient import TestClient

from src.run.desk.app import Start, application
from src.run.desk.cells import Cell
from src.run.desk.places import Places
from src.run.desk.security import HEADERS, MOST_UPLOADED
from src.run.desk.training import MOST_PHOTOS, Training, keep_photo


class NoWorker:
    def __init__(self, arguments, on_message):
        self.sent = []

    def send(self, *message):
        self.sent.append(message)

    def stop(self):
        pass


def desk(folder, **settings):
    return application(Start(folder / "outputs", [], {}, "world_sd", **settings), NoWorker)[0]


@pytest.fixture
def client(tmp_path):
    with TestClient(desk(tmp_path), base_url="http://127.0.0.1:7860") as found:
        yield found


def png(size=(32, 32), kind="PNG"):
    buffer = io.BytesIO()
    Image.new("RGB", size, "red").save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "localhost:7860"}, 200),
        ({"host": "[::1]:7860"}, 200),
        ({"origin": "http://127.0.0.1:7860"}, 200),
        ({"sec-fetch-site": "none"}, 200),
        ({"host": "evil.example:7860"}, 403),
        ({"host": "127.0.0.1.evil.example"}, 403),
        ({"host": ""}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://127.0.0.1:8000"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
    ],
)
def test_other_names_and_other_pages_are_refused(client, headers, status):
    assert client.get("/api/desk", headers=headers).status_code == status


def test_every_answer_keeps_scripts_of_others_out(client):
    for path in ("/", "/main.js", "/api/desk", "/api/concepts"):
        answer = client.get(path)
        assert answer.status_code == 200
        assert {name: answer.headers[name] for name in HEADERS} == HEADERS
    assert "unsafe" not in HEADERS["content-security-policy"]


def test_another_host_asks_for_the_token_and_a_cookie_keeps_it(tmp_path):
    with TestClient(desk(tmp_path, token="secret"), base_url="http://10.0.0.5:7860") as client:
        assert client.get("/api/desk").status_code == 403
        assert client.get("/?token=wrong").status_code == 403
        first = client.get("/?token=secret")
        assert first.status_code == 200
        assert "HttpOnly" in first.headers["set-cookie"] and "SameSite=Strict" in first.headers["set-cookie"]
        assert client.get("/api/desk").status_code == 200
        assert client.get("/api/desk", headers={"origin": "http://evil.example"}).status_code == 403


def test_files_are_confined_to_the_folders(tmp_path):
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    (outside / "secret.png").write_bytes(png())
    (inside / "link.png").symlink_to(outside / "secret.png")
    (inside / "deeper").symlink_to(outside)
    (inside / "good.png").write_bytes(png())
    places = Places([inside])
    assert places.holds(inside / "good.png") and places.holds(inside / "<b>not yet</b>.png")
    for path in ("link.png", "deeper/secret.png", "../out/secret.png", "a/../../out/secret.png", "x\0y"):
        assert not places.holds(inside / path)
        with pytest.raises(ValueError, match=r"none of the folders of this desk; start it with desk\.folders"):
            Cell.read({"settings": {"prompt": "a", "style": str(inside / path)}}, places)
    Cell.read({"settings": {"prompt": "/etc/passwd", "style": str(inside / "good.png")}}, places)


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        ({"settings": {"output": "x"}}, "output is set by the desk itself"),
        ({"settings": {"hydra.run.dir": "x"}}, "hydra.run.dir is set by the desk itself"),
        ({"settings": {"paths.cache_dir": "x"}}, "paths.cache_dir is set by the desk itself"),
        ({"settings": {"method._target_": "os.system"}}, "method._target_ is set by the desk itself"),
        ({"settings": {"backbone.path": "somebody/model"}}, "none of the folders"),
        ({"settings": {"backbone.lora": [{"path": "/etc/passwd"}]}}, "none of the folders"),
        ({"settings": {}, "typed": ["--config-dir=/tmp"]}, "is no key of generate.py"),
        ({"settings": {}, "typed": ["hydra/launcher=joblib"]}, "is no key of generate.py"),
        ({"settings": {}, "typed": ["-m"]}, "is no key=value"),
        ({"settings": {}, "typed": ["~method"]}, "is no key=value"),
        ({"settings": {}, "typed": ["style_prompt=${oc.env:HOME}"]}, "refers to another key"),
        ({"settings": {}, "typed": ["seed=1,2"]}, "make seed an axis"),
        ({"settings": {}, "typed": ["image='/etc/passwd'"]}, "none of the folders"),
        ({"settings": {"prompt": "a" * 5000}}, "at most 4000"),
        ({"settings": []}, "reload the page"),
        ({"typed": []}, "reload the page"),
    ],
)
def test_a_cell_cannot_leave_the_desk(tmp_path, told, sentence):
    with pytest.raises(ValueError, match=sentence.replace(".", r"\.")):
        Cell.read(told, Places([tmp_path]))


@pytest.mark.parametrize(
    "path",
    ["..%2f..%2fsecret.png", "%2fetc%2fpasswd", "..%5csecret.png", "<img src=x>.png", "link.png", "a.txt", ".png"],
)
def test_only_pictures_of_the_desk_are_given_out(tmp_path, client, path):
    folder = tmp_path / "outputs" / "desk" / "pictures"
    folder.mkdir(parents=True)
    (tmp_path / "outputs" / "secret.png").write_bytes(png())
    (folder / "link.png").symlink_to(tmp_path / "outputs" / "secret.png")
    (folder / "a.txt").write_text("x", encoding="utf-8")
    assert client.get(f"/api/pictures/{path}").status_code in (400, 404)
    assert client.get("/..%2f..%2fapp.py").status_code == 404


def test_what_is_uploaded_is_an_image_and_not_too_much(tmp_path, client):
    assert client.post("/api/photos?batch=aaaaaaaa", content=png(kind="JPEG")).json() == {"number": 1}
    [kept] = (tmp_path / "outputs" / "desk" / "photos" / "aaaaaaaa").iterdir()
    assert kept.name == "00.png" and Image.open(kept).format == "PNG"
    for body in (b"", b"<svg onload=alert(1)>", b"%PDF-1.4", png()[:40]):
        answer = client.post("/api/photos?batch=aaaaaaaa", content=body)
        assert answer.status_code == 400 and "image" in answer.json()["error"]
    assert client.post("/api/photos?batch=../../x", content=png()).status_code == 400
    assert client.post("/api/photos?batch=aaaaaaaa", content=b"x" * (MOST_UPLOADED + 1)).status_code == 413
    assert client.post("/api/draw", content=b"x" * (2**20 + 1)).status_code == 413
    for _ in range(MOST_PHOTOS - 1):
        keep_photo(tmp_path / "outputs" / "desk" / "photos", "aaaaaaaa", png())
    answer = client.post("/api/photos?batch=aaaaaaaa", content=png())
    assert answer.json()["error"] == f"{MOST_PHOTOS} photos are enough for one concept; drop fewer"


def test_a_length_that_is_not_told_is_counted(client):
    def chunks():
        for _ in range(40):
            yield b"x" * 2**16

    assert client.post("/api/draw", content=chunks()).status_code == 413


def test_nonsense_is_answered_in_a_sentence(client):
    for path in ("/api/draw", "/api/cancel", "/api/axis", "/api/train", "/api/numbers"):
        for body in (b"", b"[]", b'{"page": 7}', b'{"page": "<b>"}', b'{"page": "aaaaaaaa", "cells": 4}', b"[" * 10000):
            answer = client.post(path, content=body)
            assert answer.status_code == 400 and answer.json()["error"]


def test_a_training_is_the_command_that_a_person_would_type(tmp_path):
    training = Training(Path("outputs"), ["backbone.path=x", "method.device=cpu"], "world_sd", lambda _: None)
    words = training.words("outputs/desk/photos/a", "stuffed bear", "ted", 30)
    assert words == [
        *("+experiment=concept_dog", "backbone.path=x", "data.instance_dir=outputs/desk/photos/a"),
        *("class_noun='stuffed bear'", "concept=ted", "trainer.max_steps=30", "trainer.val_check_interval=30"),
    ]
    for noun, name, steps in (("dog;rm", "ted", None), ("dog", "9", None), ("dog", "ted", 0), ("", "ted", None)):
        with pytest.raises(ValueError, match="the noun is|the name of the concept|a training has 0 steps"):
            training.words("outputs/desk/photos/a", noun, name, steps)
    with pytest.raises(ValueError, match="no experiment learns a concept on backbone=world_infinity"):
        Training(Path("outputs"), [], "world_infinity", lambda _: None).words("a", "dog", "ted", None)


def test_the_page_asks_nothing_of_other_hosts():
    for path in (Path(__file__).parents[3] / "src" / "run" / "desk" / "page").iterdir():
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text and "https://" not in text and "innerHTML" not in text, path
