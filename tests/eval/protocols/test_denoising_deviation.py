"""Concepts beside the plain model: who stands where, and every number against one that is worked out here."""

import csv
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from src.data.trajectory import Trajectory
from src.data.world.render import render
from src.data.world.scenes import subject_scene
from src.eval.concepts import Concept
from src.eval.protocols.denoising_deviation import DenoisingDeviationProtocol

PROMPTS = ["a {} and a {} on the grass", "a {} left of a {} at night"]
NOUNS = {"rex": "dog", "tom": "cat", "pip": "bird"}


@pytest.fixture
def three():
    return [
        Concept(name, noun, [render(subject_scene(index, view, noun)) for view in range(2)])
        for index, (name, noun) in enumerate(NOUNS.items())
    ]


class Shifted:
    """Of N mentions, predictions are N times 0.5 away from 1, and latents N times 0.25 away from 2, everywhere.

    Held on a path, it predicts N times 0.1 away.
    """

    batch_size = 4

    def identity(self, prompt=None):
        return {"drawn": "shifted"}

    def check(self, requests):
        pass

    def sample(self, requests):
        return [render(subject_scene(request.prompt.count("<"), request.seed, "dog")) for request in requests]

    def trajectory(self, requests, along=None):
        mentions = torch.tensor([float(request.prompt.count("<")) for request in requests])
        shift = mentions[None, :, None, None, None].expand(3, -1, 1, 2, 2)
        held = along is not None
        return Trajectory(2 + 0.25 * shift, 1 + (0.1 if held else 0.5) * shift[1:])


@pytest.fixture
def found(three, profile, tmp_path):
    protocol = DenoisingDeviationProtocol(PROMPTS, 3, profile, str(tmp_path / "images"))
    metrics = protocol.run(Shifted(), three, str(tmp_path))
    with (tmp_path / "per_image.csv").open(encoding="utf-8") as file:
        return metrics, list(csv.DictReader(file))


def test_the_first_slots_are_concepts_and_prompt_and_seed_stay(three, profile, tmp_path):
    items = DenoisingDeviationProtocol(PROMPTS, 3, profile, str(tmp_path), seed=7).items(three)
    assert [(item.request.prompt, item.request.seed, item.row["number"]) for item in items[:6]] == [
        ("a dog and a cat on the grass", 7, "0"),
        ("a <rex> and a cat on the grass", 7, "1"),
        ("a <rex> and a <tom> on the grass", 7, "2"),
        ("a cat and a bird on the grass", 8, "0"),
        ("a <tom> and a bird on the grass", 8, "1"),
        ("a <tom> and a <pip> on the grass", 8, "2"),
    ]
    assert Counter(item.row["combination"] for item in items) == {"rex_tom": 6, "tom_pip": 6, "pip_rex": 6}
    assert {item.row["prompt"] for item in items} == set(PROMPTS)
    # The second prompt begins one combination later, so that no seed belongs to one combination.
    assert items[9].row["combination"] == "tom_pip" and items[9].request.seed == 7


def test_deviations_are_those_of_held_and_free_paths(found, three, dino):
    metrics, rows = found
    assert len(rows) == 2 * 3 * 3
    for row in rows:
        number = int(row["number"])
        assert float(row["stepwise"]) == pytest.approx((0.1 * number) ** 2, abs=1e-6)
        assert float(row["trajectory"]) == pytest.approx(0.25 * number / 2, abs=1e-6)
    assert metrics["numbers"]["2"]["trajectory"]["mean"] == pytest.approx(0.25, abs=1e-6)
    [row] = [row for row in rows if (row["number"], row["prompt"], row["seed"]) == ("1", PROMPTS[0], "2")]
    pictures = [render(subject_scene(index, 2, "dog")) for index in (1, 0)]
    side = pictures[0].width // 4
    ours, theirs = (
        dino.encode_images(
            [one.crop((x, y, x + side, y + side)) for y in range(0, 4 * side, side) for x in range(0, 4 * side, side)]
        ).numpy()
        for one in pictures
    )
    expected = np.sqrt(((ours @ ours.T - theirs @ theirs.T) ** 2).mean())
    assert float(row["structure"]) == pytest.approx(expected, abs=1e-5) and expected > 0.01


def test_without_concepts_the_deviation_is_exactly_zero(found):
    metrics, rows = found
    assert {row[score] for row in rows if row["number"] == "0" for score in ("stepwise", "trajectory")} == {"0.0"}
    assert {row["structure"] for row in rows if row["number"] == "0"} == {"0.0"}
    assert metrics["compared"]["rows"] == {"arm": "concept"} and metrics["compared"]["by"] == "number"
    assert {row["arm"] for row in rows if row["number"] == "0"} == {"control"}


def test_what_cannot_be_compared_is_one_sentence(three, profile, tmp_path):
    with pytest.raises(ValueError, match=r"have \[1, 2\] slots \{\}; give prompts with equally many"):
        DenoisingDeviationProtocol(["a {}", "a {} and a {}"], 1, profile, str(tmp_path))
    with pytest.raises(ValueError, match=r"have \[0\] slots"):
        DenoisingDeviationProtocol(["a dog"], 1, profile, str(tmp_path))
    with pytest.raises(ValueError, match="have no slots"):
        DenoisingDeviationProtocol([], 1, profile, str(tmp_path))
    protocol = DenoisingDeviationProtocol(PROMPTS, 1, profile, str(tmp_path))
    with pytest.raises(ValueError, match="ask for 2 concepts, but there are 1; add bank.NAME=PATH for each"):
        protocol.check(three[:1])

    class Hidden(Shifted):
        trajectory = property()

    with pytest.raises(ValueError, match="a Hidden does not show its path of denoising; take method=latexblend"):
        protocol.run(Hidden(), three, str(tmp_path))
    assert not list(tmp_path.glob("*.png"))


def test_the_grid_has_a_line_for_each_place(found, tmp_path):
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.width > grid.height / 3
