import csv
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from src.data.banks import CONCEPT_BANK
from src.data.images import as_image
from src.data.request import Request
from src.data.world.export import subject_photos
from src.eval.concepts import Concept, ConceptSource, bank_source, read_concepts
from src.eval.encoders.models import TimmEncoder
from src.eval.profile import Profile
from src.eval.protocols.concept import ConceptProtocol
from src.eval.protocols.layout import LEFT, RIGHT, crop, layout
from src.eval.protocols.pairs import PairProtocol
from src.eval.scores.outcomes import OUTCOMES

PROMPTS = ["a {} on the grass", "a photo of a {} at night", "a {} in the snow"]
PAIR_PROMPTS = ["a {first} left of a {second} on the grass", "a {first} right of a {second} in a room"]


@pytest.fixture
def protocol(profile, tmp_path):
    return ConceptProtocol(PROMPTS, 2, profile, str(tmp_path / "images"))


def rows(folder):
    with (folder / "per_image.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def cosines(first, second):
    return np.array([[np.dot(a, b) for b in second] for a in first])


def test_numbers_are_those_of_a_few_lines_of_numpy(protocol, generator, concepts, clip, dino, tmp_path):
    metrics = protocol.run(generator=generator, concepts=concepts[:1], run_dir=str(tmp_path))
    rex = concepts[0]
    places = [(prompt, seed) for prompt in PROMPTS for seed in range(2)]
    requests = [Request(prompt.replace("{}", "<rex>"), seed) for prompt, seed in places]
    images = generator.sample(requests)
    texts = clip.encode_texts([prompt.replace("{}", "dog") for prompt, _ in places])
    expected = {
        "clip_t": np.diag(cosines(clip.encode_images(images), texts)).mean(),
        "clip_i": cosines(clip.encode_images(images), clip.encode_images(rex.references)).mean(),
        "dino": cosines(dino.encode_images(images), dino.encode_images(rex.references)).mean(),
    }
    for score, value in expected.items():
        assert metrics["overall"]["concept"][score]["mean"] == pytest.approx(value, abs=1e-5)
    between = cosines(dino.encode_images(rex.references), dino.encode_images(rex.references))
    ceiling = between[np.triu_indices(3, 1)].mean()
    assert metrics["overall"]["ceiling"]["dino"]["mean"] == pytest.approx(ceiling, abs=1e-5)
    control = metrics["overall"]["control"]["dino"]["mean"]
    closed = metrics["overall"]["dino_gap_closed"]["mean"]
    assert closed == pytest.approx((expected["dino"] - control) / (ceiling - control), rel=1e-3)


def test_diversity_is_between_the_seeds_of_a_prompt(protocol, generator, concepts, dino, tmp_path):
    protocol.run(generator=generator, concepts=concepts[:1], run_dir=str(tmp_path))
    for prompt in PROMPTS:
        images = generator.sample([Request(prompt.replace("{}", "<rex>"), seed) for seed in range(2)])
        first, second = dino.encode_images(images)
        told = [row for row in rows(tmp_path) if (row["prompt"], row["arm"]) == (prompt, "concept")]
        assert [float(row["diversity"]) for row in told] == pytest.approx([1 - float(first @ second)] * 2, abs=1e-5)


def test_control_differs_from_the_concept_in_the_word_alone(protocol, generator, concepts, tmp_path):
    protocol.run(generator=generator, concepts=concepts[:1], run_dir=str(tmp_path))
    assert len(generator.requests) == 2 * 6
    for plain, marked in zip(generator.requests[:6], generator.requests[6:], strict=True):
        assert plain.seed == marked.seed
        assert marked.prompt.replace("<rex>", "dog") == plain.prompt


def test_words_before_a_prompt_move_the_concept_and_change_no_place(profile, generator, concepts, clip, tmp_path):
    late = ConceptProtocol(PROMPTS, 1, profile, str(tmp_path / "images"), lead_in=2)
    late.run(generator, concepts[:1], str(tmp_path))
    asked = [request.prompt for request in generator.requests]
    assert asked[:3] == [f"a photo of a photo of {prompt.replace('{}', 'dog')}" for prompt in PROMPTS]
    assert asked[3:] == [f"a photo of a photo of {prompt.replace('{}', '<rex>')}" for prompt in PROMPTS]
    found = [row for row in rows(tmp_path) if row["arm"] == "concept"]
    assert [row["prompt"] for row in found] == PROMPTS
    # CLIP-T asks for what every place asks for, with words before it or without.
    text = clip.encode_texts([PROMPTS[0].replace("{}", "dog")])
    image = clip.encode_images(generator.sample([Request(asked[3], 0)]))
    assert float(found[0]["clip_t"]) == pytest.approx(float(image @ text.T), abs=1e-5)


def test_subjects_of_one_image_have_their_own_prompts_and_categories(
    profile, generator, concepts, clip, dino, tmp_path
):
    rex, tom = concepts
    own = [
        Concept("rex", "dog", rex.references[:1], "", ("a {} at night", "a {} and the {}"), "animal/wild"),
        Concept("tom", "cat", tom.references[:1], "", ("a {} in the snow",), "animal/tame"),
    ]
    protocol = ConceptProtocol([], 2, profile, str(tmp_path / "images"), ceiling=False)
    metrics = protocol.run(generator, own, str(tmp_path))
    asked = [request.prompt for request in generator.requests]
    assert asked[:8:2] == ["a dog at night", "a dog and the dog", "a <rex> at night", "a <rex> and the <rex>"]
    assert asked[8::2] == ["a cat in the snow", "a <tom> in the snow"]
    expected = [
        float(
            clip.encode_images(generator.sample([Request(f"<{one.name}>", 0)])) @ clip.encode_images(one.references).T
        )
        for one in own
    ]
    told = {(row["concept"], row["arm"], row["seed"]): row for row in rows(tmp_path)}
    assert {row["arm"] for row in told.values()} == {"control", "concept"}
    found = [float(told[name, "concept", "0"]["clip_i"]) for name in ("rex", "tom")]
    assert found == pytest.approx(expected, abs=1e-5)
    assert told["tom", "control", "1"]["category"] == "animal/tame" and told["tom", "control", "1"]["copied"] == ""
    by_category = {name: found["concept"]["clip_t"]["mean"] for name, found in metrics["categories"].items()}
    by_concept = {name: found["concept"]["clip_t"]["mean"] for name, found in metrics["concepts"].items()}
    assert by_category == {"animal/wild": by_concept["rex"], "animal/tame": by_concept["tom"]}
    assert metrics["concepts"]["rex"]["prompts"] == ["a {} at night", "a {} and the {}"]
    assert "dino_gap_closed" not in metrics["overall"] and "ceiling" not in metrics["overall"]
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "Each category" in table and "animal/wild" in table and "gap" not in table
    with (tmp_path / "per_category.csv").open(encoding="utf-8") as file:
        assert {row["category"] for row in csv.DictReader(file)} == {"animal/wild", "animal/tame"}


def test_run_folder_holds_everything(protocol, generator, concepts, clip, dino, tmp_path):
    metrics = protocol.run(generator=generator, concepts=concepts, run_dir=str(tmp_path))
    assert json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8")) == metrics
    assert metrics["encoders"] == {"clip": clip.identity, "dino": dino.identity}
    assert metrics["profile"] == "tiny" and metrics["rules"]["pairing"] == "all"
    assert set(metrics["concepts"]) == {"rex", "tom"}
    assert {"command", "git_commit", "seed", "versions"} <= set(metrics)
    assert len(rows(tmp_path)) == 2 * (6 + 6 + 3)
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert all(word in table for word in ("control", "concept", "ceiling", "DINO gap closed", "tiny"))
    assert (tmp_path / "grid_rex.png").exists()
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    places = [page.index(text) for text in ("<h2>Pictures: rex", "<summary>Pictures: tom", "<table>")]
    assert places == sorted(places) and page.index("<summary>Time of") < page.index("seconds an image")
    assert not list(tmp_path.rglob("*.partial"))


def test_a_repeated_run_draws_nothing_and_gives_the_same_numbers(protocol, generator, concepts, tmp_path):
    first = protocol.run(generator, concepts, str(tmp_path))
    number = len(generator.requests)
    second = protocol.run(generator, concepts, str(tmp_path))
    assert first["overall"] == second["overall"]
    assert len(generator.requests) == number == 2 * 2 * 6


def test_the_scale_of_a_profile_changes_clip_t_alone(protocol, profile, generator, concepts, tmp_path):
    raw = protocol.run(generator, concepts, str(tmp_path / "raw"))["overall"]["concept"]
    protocol.profile = Profile("scaled", profile.clip, profile.dino, "class_noun", "all", 2.5, True)
    scaled = protocol.run(generator, concepts, str(tmp_path / "scaled"))["overall"]["concept"]
    texts = [max(float(row["clip_t"]), 0) for row in rows(tmp_path / "raw") if row["arm"] == "concept"]
    assert scaled["clip_t"]["mean"] == pytest.approx(2.5 * np.mean(texts), abs=1e-6)
    assert (scaled["clip_i"], scaled["dino"]) == (raw["clip_i"], raw["dino"])


def test_weights_that_are_missing_are_said_before_anything_is_drawn(
    profile, generator, concepts, tmp_path, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    absent = Profile("absent", profile.clip, TimmEncoder("vit_small_patch16_224.dino"), "class_noun", "all")
    for protocol in (
        ConceptProtocol(PROMPTS, 1, absent, str(tmp_path / "images")),
        PairProtocol(PAIR_PROMPTS, 1, absent, str(tmp_path / "images")),
    ):
        for asked in (lambda one=protocol: one.check(concepts), lambda one=protocol: one.run(generator, concepts, "")):
            with pytest.raises(ValueError, match="cannot load timm vit_small_patch16_224.dino"):
                asked()
    assert generator.requests == []


def test_pairs_are_scored_on_their_own_halves(generator, concepts, profile, tmp_path):
    class SideBySide:
        """Draws the two subjects where the prompt puts them."""

        batch_size = 4

        def identity(self, prompt=None):
            return {"draws": "pairs"}

        def check(self, requests):
            """Anything can be drawn."""

        def sample(self, requests):
            return [self._draw(request) for request in requests]

        def _draw(self, request):
            words = [word.strip("<>") for word in request.prompt.split()]
            words = [word for word in words if word in ("rex", "tom", "dog", "cat")]
            known = {concept.name: concept.references[0] for concept in concepts}
            grey = Image.new("RGB", (64, 64), (127, 127, 127))
            first, second = (known.get(word, grey) for word in words)
            canvas = Image.new("RGB", (128, 64))
            left, right = (first, second) if "left of" in request.prompt else (second, first)
            canvas.paste(left, (0, 0))
            canvas.paste(right, (64, 0))
            return canvas

    protocol = PairProtocol(PAIR_PROMPTS, 1, profile, str(tmp_path / "images"))
    metrics = protocol.run(generator=SideBySide(), concepts=concepts, run_dir=str(tmp_path))
    dino = profile.dino
    own = [dino.encode_images(concept.references) for concept in concepts]
    crops = [dino.encode_images(concept.references[:1]) for concept in concepts]
    margins = [cosines(crops[i], own[i]).mean() - cosines(crops[i], own[1 - i]).mean() for i in (0, 1)]
    overall = metrics["overall"]
    assert overall["concept"]["identity_margin"]["mean"] == pytest.approx(np.mean(margins), abs=1e-5)
    assert overall["concept"]["both_own"]["mean"] == float(all(margin > 0 for margin in margins))
    assert overall["control"]["identity_margin"]["mean"] == pytest.approx(0, abs=1e-5)
    assert math.isfinite(overall["ceiling"]["identity_margin"])
    lines = [json.loads(line) for line in (tmp_path / "images.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["prompt"] for line in lines] == [request.prompt for request in protocol.requests(concepts)]
    assert [line["file"] for line in lines] == [row["file"] for row in rows(tmp_path)]


def test_a_pair_is_right_only_if_both_are(generator, concepts, profile, tmp_path):
    class FirstTwice:
        """Draws one concept in both halves, whatever the prompt asks for."""

        batch_size = 4

        def identity(self, prompt=None):
            return {"draws": "the first"}

        def check(self, requests):
            """Anything can be drawn."""

        def sample(self, requests):
            canvas = Image.new("RGB", (128, 64))
            for left in (0, 64):
                canvas.paste(concepts[0].references[0], (left, 0))
            return [canvas] * len(requests)

    protocol = PairProtocol(PAIR_PROMPTS, 1, profile, str(tmp_path / "images"))
    metrics = protocol.run(generator=FirstTwice(), concepts=concepts, run_dir=str(tmp_path))
    ours, theirs = (profile.dino.encode_images(concept.references) for concept in concepts)
    drawn = profile.dino.encode_images(concepts[0].references[:1])
    margin = cosines(drawn, ours).mean() - cosines(drawn, theirs).mean()
    assert margin > 0 and metrics["overall"]["concept"]["both_own"]["mean"] == 0
    told = {(row["pair"], row["arm"]): row for row in rows(tmp_path)}
    assert float(told["rex_tom", "concept"]["identity_margin"]) == pytest.approx(0, abs=1e-5)
    within = [cosines(one, one)[np.triu_indices(3, 1)].mean() for one in (ours, theirs)]
    ceiling = np.mean(within) - cosines(ours, theirs).mean()
    assert metrics["overall"]["ceiling"]["identity_margin"] == pytest.approx(ceiling, abs=1e-5)


class MeanColor:
    """An encoder that sees the mean colour of what is no padding: red, green and blue are -1/3 alike."""

    identity = "mean colour"

    def encode_images(self, pictures):
        found = []
        for picture in pictures:
            pixels = np.asarray(as_image(picture), np.float32).reshape(-1, 3)
            found.append(torch.tensor(pixels[(pixels != 127).any(1)].mean(0) - 127.5))
        return torch.nn.functional.normalize(torch.stack(found), dim=-1)


PAINTS = {"red": (255, 0, 0), "blue": (0, 0, 255), "green": (0, 255, 0)}
DRAWN = {
    # By seed the left and the right half; a subject is found from a likeness of 1/3 on, halfway from green to itself.
    0: ("red", "blue", "as_asked"),
    1: ("blue", "red", "swapped"),
    2: ("red", "red", "mixed"),
    3: ("red", "green", "omitted"),
    4: ("green", "green", "omitted"),
}


class Painter:
    """Paints halves by seed where concepts are asked for, and green where nouns are."""

    batch_size = 4

    def identity(self, prompt=None):
        return {"draws": "paint"}

    def check(self, requests):
        """Anything can be drawn."""

    def sample(self, requests):
        return [self._draw(*DRAWN[request.seed][:2]) if "<" in request.prompt else self._draw() for request in requests]

    def _draw(self, left="green", right="green"):
        canvas = Image.new("RGB", (128, 64), PAINTS[left])
        canvas.paste(PAINTS[right], (64, 0, 128, 64))
        return canvas


def test_pairs_are_sorted_by_what_each_half_shows(clip, tmp_path):
    concepts = [
        Concept(name, noun, [Image.new("RGB", (64, 64), PAINTS[paint])] * 2)
        for name, noun, paint in (("rex", "dog", "red"), ("tom", "cat", "blue"))
    ]
    profile = Profile("paint", clip, MeanColor(), "class_noun", "all")
    protocol = PairProtocol(["a {first} left of a {second}"], len(DRAWN), profile, str(tmp_path / "images"))
    metrics = protocol.run(Painter(), concepts, str(tmp_path))
    told = [row for row in rows(tmp_path) if row["arm"] == "concept"]
    for pair, others in (("rex_tom", {}), ("tom_rex", {"as_asked": "swapped", "swapped": "as_asked"})):
        found = [[name for name in OUTCOMES if float(row[name])] for row in told if row["pair"] == pair]
        assert found == [[others.get(outcome, outcome)] for *_, outcome in DRAWN.values()]
    shares = {name: metrics["overall"]["concept"][name]["mean"] for name in OUTCOMES}
    assert shares == pytest.approx({"as_asked": 0.2, "swapped": 0.2, "mixed": 0.2, "omitted": 0.4})
    assert metrics["overall"]["control"]["omitted"]["mean"] == 1
    assert metrics["compared"]["scores"] == ["identity_margin", "both_own", *OUTCOMES, "clip_t"]


def test_layouts_come_from_the_relation():
    assert layout("a {first} left of a {second}") == (LEFT, RIGHT)
    assert layout("a {first} right of a {second}") == (RIGHT, LEFT)
    with pytest.raises(ValueError, match="has no layout"):
        layout("a {first} next to a {second}")
    assert crop(Image.new("RGB", (64, 64)), LEFT).size == (64, 64)


def test_a_method_may_be_told_the_halves(concepts, profile, tmp_path):
    prompts = ["a {first} left of a {second}", "a {first} below a {second}"]
    free = PairProtocol(prompts, 1, profile, str(tmp_path)).requests(concepts)
    told = PairProtocol(prompts, 1, profile, str(tmp_path), with_layout=True).requests(concepts)
    assert [(one.prompt, one.seed) for one in told] == [(one.prompt, one.seed) for one in free]
    assert not any(one.layout for one in free)
    halves = {one.prompt: dict(one.layout) for one in told}
    assert halves["a <tom> left of a <rex>"] == {"tom": LEFT, "rex": RIGHT}
    assert halves["a <rex> below a <tom>"] == {"rex": (0.0, 0.5, 1.0, 1.0), "tom": (0.0, 0.0, 1.0, 0.5)}
    assert all(not layout for prompt, layout in halves.items() if "<" not in prompt)


def test_what_cannot_be_scored_is_refused(protocol, generator, concepts, profile, tmp_path):
    with pytest.raises(ValueError, match="needs one {}, where"):
        ConceptProtocol(["a dog"], 1, profile, "images")
    with pytest.raises(ValueError, match="no concept to score"):
        protocol.run(generator, [], str(tmp_path))
    with pytest.raises(
        ValueError, match=r"rex has no prompts; give some, such as protocol.prompts=\['a {} at night'\]"
    ):
        ConceptProtocol([], 1, profile, "images").check(concepts)
    with pytest.raises(ValueError, match="tom and rex: one has a category, the other none"):
        protocol.check([concepts[0], replace(concepts[1], category="cats")])
    with pytest.raises(ValueError, match="rex has one reference"):
        protocol.run(generator, [Concept("rex", "dog", concepts[0].references[:1])], str(tmp_path))
    with pytest.raises(ValueError, match="needs two concepts"):
        PairProtocol(PAIR_PROMPTS, 1, profile, str(tmp_path / "images")).run(generator, concepts[:1], str(tmp_path))
    lonely = [concepts[0], Concept("tom", "cat", concepts[1].references[:1])]
    with pytest.raises(ValueError, match="tom has one reference"):
        PairProtocol(PAIR_PROMPTS, 1, profile, str(tmp_path / "images")).check(lonely)


ROWS = {"k.0": torch.zeros(2, 4), "v.0": torch.zeros(2, 4)}


def test_concepts_are_read_from_banks(tmp_path, pictures):
    bank = str(tmp_path / "rex.safetensors")
    CONCEPT_BANK.write(bank, ROWS, {"class_noun": "dog", "backbone_hash": "f00", "references": "world:3"})
    (tmp_path / "photos").mkdir()
    pictures[0].save(tmp_path / "photos" / "one.png")
    (rex,) = read_concepts({"rex": bank_source(bank)}, {}, {"world": subject_photos})
    assert (rex.name, rex.class_noun, len(rex.references)) == ("rex", "dog", 5)
    (rex,) = read_concepts({"rex": ConceptSource("dog", "")}, {"rex": str(tmp_path / "photos")}, {})
    assert len(rex.references) == 1


@pytest.mark.parametrize(
    ("references", "message"),
    [
        ({}, "add references.rex=FOLDER, or references.rex=world:INDEX"),
        ({"tom": "world:1"}, "add bank.tom=PATH"),
        ({"rex": "world:x"}, "'world:x' should be world: and the number of a subject"),
    ],
)
def test_unusable_references_are_refused(references, message, tmp_path):
    bank = str(tmp_path / "rex.safetensors")
    CONCEPT_BANK.write(bank, ROWS, {"class_noun": "dog", "backbone_hash": "f00"})
    with pytest.raises(ValueError, match=message):
        read_concepts({"rex": bank_source(bank)}, references, {"world": subject_photos})


def test_a_file_that_is_no_bank_is_refused(tmp_path):
    (tmp_path / "rex.safetensors").write_text("hello", encoding="utf-8")
    with pytest.raises(ValueError, match="concept bank"):
        bank_source(str(tmp_path / "rex.safetensors"))
    with pytest.raises(ValueError, match="concept bank"):
        bank_source(str(tmp_path / "nothing.safetensors"))
