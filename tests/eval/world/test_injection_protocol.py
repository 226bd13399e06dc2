"""An injected prompt is measured by what is really in the image."""

import csv
import json
from dataclasses import replace

import pytest

from src.data.images import load_image
from src.data.request import TextStyle
from src.data.world.caption_tests import prompt_pairs
from src.data.world.render import render
from src.data.world.scenes import subject_scene
from src.eval.sweeps.comparison import compare_points
from src.eval.world.injection import InjectionProtocol
from src.eval.world.probe import Probe


class Painter:
    """Draws the base prompt's object, or the injected one's, in the colour that its prompt names."""

    batch_size = 4

    def __init__(self, injected: bool) -> None:
        self.injected = injected

    def identity(self, prompt=None):
        return {"reference.draws": str(self.injected)}

    def check(self, requests):
        """Anything can be drawn."""

    def sample(self, requests):
        return [self._draw(request) for request in requests]

    def _draw(self, request):
        words = (request.style.words if self.injected else request.prompt).split()
        scene = subject_scene(request.seed, 0, words[-1], "grass")
        placed = scene.objects[0]
        look = replace(placed.look, color=words[-2], accent=words[-2], pattern="plain", marking=None)
        return render(replace(scene, objects=(replace(placed, look=look, half=0.4),)))


@pytest.fixture(scope="module")
def probe(root):
    return Probe(f"local-dir:{root}/world/probe")


def protocol(profile, probe, folder, **changes):
    return InjectionProtocol(
        **{"difference": "both", "num_pairs": 6, "num_seeds": 2} | changes,
        profile=profile,
        probe=probe,
        images_dir=str(folder),
    )


def test_requests_name_both_prompts_of_a_pair(profile, probe, tmp_path):
    requests = protocol(profile, probe, tmp_path).requests()
    pairs = prompt_pairs("both", 6)
    assert [(r.prompt, r.style, r.seed) for r in requests[:2]] == [
        (pairs[0].base, TextStyle(pairs[0].injected), seed) for seed in (0, 1)
    ]
    assert len(requests) == 12


def test_the_probe_reads_what_was_drawn(profile, probe, tmp_path):
    drawn = {
        injected: protocol(profile, probe, tmp_path / "images").run(
            Painter(injected), [], str(tmp_path / str(injected))
        )
        for injected in (False, True)
    }
    for score in ("injected_object", "injected_color"):
        assert drawn[False]["overall"][score]["mean"] <= 0.1
        assert drawn[True]["overall"][score]["mean"] >= 0.7


def test_each_score_is_of_the_prompt_that_it_names(profile, probe, tmp_path):
    protocol(profile, probe, tmp_path / "images", seed=7).run(Painter(True), [], str(tmp_path / "run"))
    with (tmp_path / "run" / "per_image.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    pairs = [pair for pair in prompt_pairs("both", 6, 7) for _ in range(2)]
    assert [int(row["seed"]) for row in rows] == [7, 8] * 6
    embedded = profile.clip.encode_images([load_image(tmp_path / "images" / row["file"]) for row in rows])
    for name, prompts in (("clip_injected", [p.injected for p in pairs]), ("clip_base", [p.base for p in pairs])):
        expected = (embedded * profile.clip.encode_texts(prompts)).sum(-1).tolist()
        assert [float(row[name]) for row in rows] == pytest.approx(expected, abs=1e-5)


def test_points_of_a_sweep_are_compared(profile, probe, tmp_path):
    for number, injected in enumerate((False, True)):
        folder = tmp_path / str(number)
        (folder / ".hydra").mkdir(parents=True)
        (folder / ".hydra" / "overrides.yaml").write_text(f"- method.inject_at={injected}\n", encoding="utf-8")
        protocol(profile, probe, tmp_path / "images").run(Painter(injected), [], str(folder))
    compare_points(tmp_path)
    record = json.loads((tmp_path / "comparison.json").read_text(encoding="utf-8"))
    assert record["differences"]["method.inject_at=True injected_object"]["interval"]["low"] > 0.5


def test_what_cannot_be_drawn_is_said(profile, probe, tmp_path):
    with pytest.raises(ValueError, match="choose one of object, color, both"):
        protocol(profile, probe, tmp_path, difference="size")
