import errno
import json
from pathlib import Path

import pytest
from PIL import Image

from src.data import files as whole_file
from src.data.notes import read_note
from src.data.request import ImageStyle, Request, TextStyle
from src.eval.draw import draw_missing, manifest_lines, measured_plan, request_paths
from src.run.errors import explain

REQUESTS = [Request(f"a {noun}", seed) for noun in ("dog", "cat", "bird") for seed in range(3)]


class Counting:
    """Draws what depends on the whole batch, as rounding does; may stop in the middle."""

    batch_size = 4

    def __init__(self, fails_after: int = 10**6) -> None:
        self.drawn, self.fails_after = [], fails_after

    def identity(self, prompt: str | None = None) -> dict[str, str]:
        return {"draws": "numbers"}

    def check(self, requests):
        """Anything can be drawn."""

    def sample(self, requests):
        self.drawn += requests
        batch = sum(len(request.prompt) * (request.seed + 1) for request in requests) % 256
        for number, request in enumerate(requests):
            if len(self.drawn) - len(requests) + number >= self.fails_after:
                raise KeyboardInterrupt
            yield Image.new("RGB", (8, 8), (batch, request.seed, 0))


def manifest(folder: Path, generator: Counting) -> str:
    return manifest_lines(REQUESTS, draw_missing(generator, REQUESTS, folder))


def test_an_interrupted_run_ends_in_the_manifest_of_an_undisturbed_one(tmp_path: Path) -> None:
    whole = manifest(tmp_path / "whole", Counting())
    # An image of the middle batch is missing when the run stops.
    with pytest.raises(KeyboardInterrupt):
        manifest(tmp_path / "stopped", Counting(fails_after=6))
    assert len(list((tmp_path / "stopped").glob("*.png"))) == 6
    assert manifest(tmp_path / "stopped", Counting()) == whole
    assert len(whole.splitlines()) == len(REQUESTS)
    assert set(json.loads(whole.splitlines()[0])) == {"file", "sha256", "prompt", "seed"}


def test_a_missing_image_is_drawn_again_in_its_own_batch(tmp_path: Path) -> None:
    before = manifest(tmp_path, Counting())
    request_paths(Counting(), REQUESTS, tmp_path)[5].unlink()
    generator = Counting()
    assert manifest(tmp_path, generator) == before
    assert generator.drawn == REQUESTS[4:8]


def test_a_damaged_image_is_drawn_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = manifest(tmp_path, Counting())
    damaged = request_paths(Counting(), REQUESTS, tmp_path)[5]
    content = damaged.read_bytes()
    for broken in (content[:-3], b"", content[:50] + bytes([content[50] ^ 1]) + content[51:]):
        damaged.write_bytes(broken)
        assert manifest(tmp_path, Counting()) == before
    assert caplog.messages == [f"{damaged} is damaged; it was removed and is made anew"] * 3


class Particular(Counting):
    """Draws no birds."""

    def check(self, requests: list[Request]) -> None:
        if any("bird" in request.prompt for request in requests):
            raise ValueError("a bird was asked for")


def test_what_cannot_be_drawn_is_said_before_anything_is(tmp_path: Path) -> None:
    generator = Particular()
    for draw in (draw_missing, measured_plan):
        with pytest.raises(ValueError, match="a bird was asked for"):
            draw(generator, REQUESTS, tmp_path)
    assert generator.drawn == []
    assert len(draw_missing(generator, REQUESTS[:6], tmp_path)) == 6


class Styled(Counting):
    """Draws in a style, of which its settings say how."""

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.strength = strength

    def identity(self, prompt: str | None = None) -> dict[str, str]:
        return super().identity(prompt) | {"reference.strength": str(self.strength)}


def test_a_reference_is_part_of_the_key_by_its_content(tmp_path: Path) -> None:
    for name, color in (("a.png", "red"), ("b.bmp", "red"), ("c.png", "blue")):
        Image.new("RGB", (32, 32), color).save(tmp_path / name)
    styles = [None, *(ImageStyle(str(tmp_path / name)) for name in ("a.png", "b.bmp", "c.png")), TextStyle("neon")]
    requests = [Request("a dog", 0, style) for style in styles]
    plain, red, same, blue, words = request_paths(Counting(), requests, tmp_path / "images")
    assert red == same and len({plain, red, blue, words}) == 4
    assert plain == request_paths(Counting(), [Request("a dog", 0)], tmp_path / "images")[0]
    paths = draw_missing(Counting(), requests, tmp_path / "images")
    noted = read_note(str(paths[1])).drawn_with["reference"]
    lines = [json.loads(line) for line in manifest_lines(requests, paths).splitlines()]
    assert "reference" not in lines[0] and lines[1]["reference"] == lines[2]["reference"] == noted
    assert lines[4]["reference"] == "text:neon"


def test_settings_of_a_style_do_not_change_what_is_drawn_without_one(tmp_path: Path) -> None:
    requests = [Request("a dog", 0), Request("a dog", 0, style=TextStyle("neon"))]
    weak, strong = (request_paths(Styled(strength), requests, tmp_path) for strength in (0.1, 0.9))
    assert weak[0] == strong[0] and weak[1] != strong[1]


def test_a_layout_is_part_of_the_key_and_of_the_manifest(tmp_path: Path) -> None:
    free, boxed = Request("a <rex>", 0), Request("a <rex>", 0, layout=(("rex", (0.0, 0.0, 0.5, 1.0)),))
    other = Request("a <rex>", 0, layout=(("rex", (0.0, 0.0, 0.6, 1.0)),))
    paths = request_paths(Counting(), [free, boxed, other], tmp_path)
    assert len(set(paths)) == 3
    drawn = draw_missing(Counting(), [free, boxed], tmp_path)
    assert drawn == paths[:2]
    told = [json.loads(line) for line in manifest_lines([free, boxed], drawn).splitlines()]
    assert "layout" not in told[0] and told[1]["layout"] == "rex=[0.0, 0.0, 0.5, 1.0]"


def test_a_reference_that_is_not_there_is_said_before_drawing(tmp_path: Path) -> None:
    generator = Counting()
    with pytest.raises(ValueError, match="there is no image file"):
        draw_missing(generator, [REQUESTS[0], Request("a dog", 0, ImageStyle(str(tmp_path / "no.png")))], tmp_path)
    assert generator.drawn == []


def test_equal_requests_are_drawn_once(tmp_path: Path) -> None:
    generator = Counting()
    paths = draw_missing(generator, [REQUESTS[0]] * 3, tmp_path)
    assert len(set(paths)) == 1
    assert generator.drawn == REQUESTS[:1]


def test_a_dry_run_counts_what_a_run_in_a_new_folder_will_draw(tmp_path: Path) -> None:
    plan = dict(measured_plan(Counting(), REQUESTS, tmp_path).rows)
    assert (plan["images asked for"], plan["drawn now, to measure"], plan["left to draw"]) == ("9", "8", "9")
    assert not list(tmp_path.iterdir())
    assert float(plan["peak memory"].split()[0]) > 0


def test_a_dry_run_in_a_folder_that_is_gone_on_with_keeps_what_it_draws(tmp_path: Path) -> None:
    draw_missing(Counting(), REQUESTS[:1], tmp_path)
    plan = dict(measured_plan(Counting(), REQUESTS, tmp_path).rows)
    assert (plan["there already"], plan["drawn now, to measure"], plan["left to draw"]) == ("1", "8", "0")
    assert len(list(tmp_path.glob("*.png"))) == 9


def test_a_full_disk_is_one_sentence_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = manifest(tmp_path / "whole", Counting())
    replace, replaced = whole_file.os.replace, []

    def full(source: Path, target: Path) -> None:
        replaced.append(target)
        if len(replaced) > 5:
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(whole_file.os, "replace", full)
        with pytest.raises(OSError, match="No space left") as raised:
            manifest(tmp_path / "full", Counting())
    assert explain(raised.value).startswith("the disk is full at ")
    assert len(list((tmp_path / "full").glob("*.png"))) == 5
    assert not list((tmp_path / "full").glob(".*.partial"))
    assert manifest(tmp_path / "full", Counting()) == whole
