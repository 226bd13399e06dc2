"""What docs/adding.md says of metrics and protocols: a function and one entry; a class and one YAML."""

import csv
import json

import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image

from src.data.request import Request
from src.eval.protocols import concept
from src.eval.protocols.base import Item, Protocol, scored_rows
from src.eval.sweeps.comparison import compare_points


def nearest(generated, references):
    """Highest cosine of each image with a reference, ``(N,)``."""
    return (generated @ references.T).amax(-1)


class BrightnessProtocol(Protocol[float]):
    """How far the brightness of an image is from what its prompt asks for."""

    name, title = "brightness", "Brightness that prompts ask for"
    settings, scores = ("prompts",), ("brightness", "error")

    def __init__(self, prompts, profile, images_dir, seed=0):
        super().__init__(profile, images_dir, seed)
        self.prompts = prompts

    def items(self, concepts=()):
        return [
            Item(Request(prompt, self.seed), {"prompt": prompt, "seed": self.seed}, wanted)
            for prompt, wanted in self.prompts.items()
        ]

    def score(self, frame, generator):
        found = [np.asarray(image).mean() / 255 for image in frame.images()]
        errors = [abs(ours - wanted) for ours, wanted in zip(found, frame.targets, strict=True)]
        return scored_rows(frame.places, {"brightness": found, "error": errors}, self.scores)


YAML = f"""
_target_: {__name__}.BrightnessProtocol
prompts: {{a white wall: 1.0, a black cat at night: 0.0}}
seed: 0
"""


class Grey:
    """Draws every prompt in one shade."""

    batch_size = 2

    def __init__(self, shade):
        self.shade = shade

    def identity(self, prompt=None):
        return {"shade": str(self.shade)}

    def check(self, requests):
        """Anything can be drawn."""

    def sample(self, requests):
        return [Image.new("RGB", (64, 64), (self.shade,) * 3) for _ in requests]


@pytest.mark.parametrize("table", ["SCORES", "GUARDS"])
def test_a_metric_is_a_function_and_one_entry(table, monkeypatch, profile, generator, concepts, tmp_path):
    monkeypatch.setitem(getattr(concept, table), "nearest", lambda of: nearest(of.dino, of.dino_references))
    protocol = concept.ConceptProtocol(["a {} on the grass", "a {} at night"], 1, profile, str(tmp_path / "images"))
    metrics = protocol.run(generator, concepts, tmp_path)
    with (tmp_path / "per_image.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["arm"] == "concept"]
    dino = profile.dino
    images, references = [tmp_path / "images" / row["file"] for row in rows[:2]], concepts[0].references
    expected = (dino.encode_images(images) @ dino.encode_images(references).T).amax(-1)
    np.testing.assert_allclose([float(row["nearest"]) for row in rows[:2]], expected, atol=1e-6)
    assert metrics["overall"]["concept"]["nearest"]["mean"] == pytest.approx(
        np.mean([float(row["nearest"]) for row in rows])
    )
    assert "nearest" in (tmp_path / "table.md").read_text(encoding="utf-8")
    assert ("nearest" in metrics["compared"]["scores"]) == (table == "SCORES")


def test_a_protocol_is_a_class_and_one_file(profile, tmp_path):
    for number, shade in enumerate((51, 204)):
        folder = tmp_path / str(number)
        (folder / ".hydra").mkdir(parents=True)
        (folder / ".hydra" / "overrides.yaml").write_text(f"- method.shade={shade}\n", encoding="utf-8")
        protocol = instantiate(
            OmegaConf.create(YAML), profile=profile, images_dir=str(tmp_path / "images"), _convert_="all"
        )
        metrics = protocol.run(Grey(shade), [], folder)
        assert metrics["overall"]["brightness"]["mean"] == pytest.approx(shade / 255)
        assert metrics["overall"]["error"]["mean"] == pytest.approx(0.5)
        assert {"command", "encoders", "generator", "git_commit", "profile", "prompts", "seed"} <= set(metrics)
        assert {path.name for path in folder.iterdir()} >= {"images.jsonl", "grid.png", "table.md", "per_image.jsonl"}
    compare_points(tmp_path)
    record = json.loads((tmp_path / "comparison.json").read_text(encoding="utf-8"))
    assert record["differences"]["method.shade=204 brightness"]["interval"]["mean"] == pytest.approx(0.6)
