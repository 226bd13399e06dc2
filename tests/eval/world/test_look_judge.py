from dataclasses import asdict, replace

import numpy as np
import pytest

from src.data.world.export import SUBJECTS, known_look, write_looks
from src.data.world.render import render
from src.data.world.scenes import looks_scene, subject_scene
from src.data.world.vocabulary import COLORS, Look, subject
from src.eval.concepts import Concept
from src.eval.profile import Profile
from src.eval.protocols.concept import ConceptProtocol
from src.eval.protocols.layout import LEFT, RIGHT, WHOLE, places
from src.eval.protocols.pairs import PairProtocol
from src.eval.world.identity import LookJudge, object_inside, prompted

PAIR_PROMPTS = ["a {first} left of a {second} on the grass", "a {first} right of a {second} in a room"]


class Named:
    """A probe that knows nouns by the picture: a dog where more pixels have the black of rex than the yellow of tom."""

    identity = "named"

    def read(self, pictures):
        return {"object": ["dog" if worn(one(), DOG) > worn(one(), CAT) else "cat" for one in pictures]}


def worn(picture, look):
    """Number of pixels that have about the main colour of a look."""
    away = np.abs(np.asarray(picture, np.int16) - np.array(COLORS[look.color])).max(-1)
    return int((away < 40).sum())


def known(name, index, noun):
    return Concept(name, noun, [render(subject_scene(index, view, noun)) for view in range(3)], f"world:{index}")


DOG, CAT = subject(0, "dog"), subject(1, "cat")
REX, TOM = known("rex", 0, "dog"), known("tom", 1, "cat")
NAMES = ["noun", "color", "accent", "pattern", "marking", "marking_color"]


def judge():
    return LookJudge(Named())


def test_looks_are_those_of_the_folder_and_of_the_number(tmp_path):
    write_looks(tmp_path / "subjects")
    for name, (noun, index) in SUBJECTS.items():
        look = known_look(str(tmp_path / "subjects" / name), noun)
        assert look == known_look(f"world:{index}", noun) == subject(index, noun)
        assert look.noun == noun
    assert known_look(str(tmp_path / "subjects" / "nobody"), "dog") is None
    assert known_look(str(tmp_path / "photos"), "dog") is None
    assert known_look("", "dog") is None


def test_the_shipped_looks_are_those_of_the_subjects(tmp_path, request):
    shipped = request.config.rootpath / "world" / "subjects" / "looks.json"
    assert write_looks(tmp_path).read_bytes() == shipped.read_bytes()


def other_color(look):
    return next(color for color in ("red", "green") if color not in (look.color, look.accent, look.marking_color))


def test_right_are_the_attributes_that_are_read_as_the_subjects():
    changed = replace(DOG, accent=other_color(DOG))
    picture = render(looks_scene([changed], None, "snow", 1))
    (right,) = judge().right([picture], [WHOLE], [REX]).tolist()
    assert dict(zip(judge().attributes, right[0], strict=True)) == {name: name != "accent" for name in NAMES}


def test_the_colour_of_a_marking_that_is_not_there_is_wrong():
    picture = render(looks_scene([replace(DOG, marking=None)], None, "snow", 1))
    right = judge().right([picture], [WHOLE], [REX])[0, 0].tolist()
    assert [name for name, one in zip(NAMES, right, strict=True) if not one] == ["marking", "marking_color"]


def test_telling_are_the_attributes_in_which_looks_differ():
    ours, theirs = asdict(DOG), asdict(CAT)
    assert judge().telling([REX, TOM]).tolist() == [ours[name] != theirs[name] for name in NAMES]


def test_each_object_is_read_inside_its_box():
    picture = render(looks_scene([DOG, CAT], "left of", "snow", 5))
    assert judge().looks([picture, picture], [LEFT, RIGHT]) == [DOG, CAT]


def test_where_nothing_stands_nothing_is_right():
    empty = render(replace(looks_scene([DOG], None, "room", 0), objects=()))
    assert object_inside(empty, WHOLE) is None
    assert judge().looks([empty], [WHOLE]) == [None]
    assert not judge().right([empty], [WHOLE], [REX]).any()


@pytest.mark.parametrize(
    ("prompt", "background", "style", "nouns"),
    [
        ("a {} on the grass", "grass", "photo", ["dog"]),
        ("a watercolor painting of a {} on the beach", "beach", "watercolor", ["dog"]),
        ("a {} left of a red cup", None, "photo", ["dog", "cup"]),
    ],
)
def test_scenes_are_those_that_prompts_ask_for(prompt, background, style, nouns):
    scene = prompted(prompt, [DOG], 7)
    assert background in (None, scene.background)
    assert scene.style == style
    assert [placed.look.noun for placed in scene.objects] == nouns


def test_pairs_stand_where_prompts_put_them():
    looks = [DOG, CAT]
    left = prompted("a photo of a {first} left of a {second} in a room", looks, 0)
    right = prompted("a {first} right of a {second} in the snow", looks, 0)
    assert left.objects[0].look == right.objects[0].look == looks[0]
    assert left.objects[0].x < 0.5 < left.objects[1].x
    assert right.objects[1].x < 0.5 < right.objects[0].x
    assert (left.background, right.background) == ("room", "snow")


def test_boxes_come_from_what_follows_the_slot():
    assert places("a {} on the grass") == [WHOLE]
    assert places("a {} left of a red cup") == [LEFT]
    assert places("a {} next to a blue car") == [LEFT, RIGHT]


class Drawn:
    """Draws both subjects as asked, or one of them twice, and plain nouns as other individuals."""

    batch_size = 4

    def __init__(self, looks):
        self.looks = looks

    def identity(self, prompt=None):
        return {"draws": "looks"}

    def check(self, requests):
        """Anything can be drawn."""

    def sample(self, requests):
        return [self._draw(request) for request in requests]

    def _draw(self, request):
        relation = "left of" if "left of" in request.prompt else "right of" if "right of" in request.prompt else None
        words = [word.strip("<>") for word in request.prompt.split() if word.strip("<>") in self.looks]
        neighbour = [Look("cup", "red", "white", "plain", None, "black")] if "cup" in request.prompt else []
        looks = [self.looks[word] for word in words] + neighbour
        return render(looks_scene(looks, relation, "grass", request.seed))


LOOKS = {"rex": DOG, "tom": CAT, "dog": subject(40, "dog"), "cat": subject(41, "cat")}


def judged(profile):
    return Profile("judged", profile.clip, profile.dino, "class_noun", "all", judge=judge())


@pytest.mark.parametrize(
    ("swapped", "outcome"), [({}, "as_asked"), ({"rex": "tom", "tom": "rex"}, "swapped"), ({"tom": "rex"}, "mixed")]
)
def test_outcomes_by_look_are_what_was_drawn(profile, tmp_path, swapped, outcome):
    looks = {name: LOOKS[swapped.get(name, name)] for name in LOOKS}
    protocol = PairProtocol(PAIR_PROMPTS, 1, judged(profile), str(tmp_path / "images"))
    overall = protocol.run(Drawn(looks), [REX, TOM], str(tmp_path))["overall"]
    assert overall["concept"][f"look_{outcome}"]["mean"] == 1
    assert overall["renders"]["look_as_asked"]["mean"] == 1
    assert sum(overall["concept"][name]["mean"] for name in ("as_asked", "swapped", "mixed", "omitted")) == 1


def test_without_known_looks_there_is_dino_alone(profile, tmp_path):
    strangers = [replace(REX, source="photos/rex"), replace(TOM, source="")]
    protocol = PairProtocol(PAIR_PROMPTS, 1, judged(profile), str(tmp_path / "images"))
    metrics = protocol.run(Drawn(LOOKS), strangers, str(tmp_path))
    assert "look_mixed" not in metrics["overall"]["concept"] and "renders" not in metrics["overall"]
    assert metrics["compared"]["scores"] == [
        "identity_margin",
        "both_own",
        "as_asked",
        "swapped",
        "mixed",
        "omitted",
        "clip_t",
    ]


def test_attributes_of_a_concept_have_their_ceilings(profile, tmp_path):
    protocol = ConceptProtocol(["a {} on the grass", "a {} left of a red cup"], 1, judged(profile), str(tmp_path / "i"))
    looks = {**LOOKS, "dog": CAT}
    metrics = protocol.run(Drawn(looks), [REX], str(tmp_path))
    overall = metrics["overall"]
    for arm in ("concept", "ceiling"):
        assert overall[arm]["right_all"]["mean"] == overall[arm]["right_accent"]["mean"] == 1
    assert "clip_t" in overall["renders"] and "right_marking" in overall["renders"]
    assert overall["control"]["right_noun"]["mean"] == overall["control"]["right_all"]["mean"] == 0
    assert metrics["compared"]["scores"][-1] == "right_all"
    assert "marking color" in (tmp_path / "table.md").read_text(encoding="utf-8")
