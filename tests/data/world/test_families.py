from dataclasses import asdict

import torch

from src.data.world.families import (
    EDITS,
    MEMBERS,
    edits,
    family,
    found_among_all,
    found_in_family,
    held_out_family,
    member_cosines,
)
from src.data.world.scenes import family_scene
from src.data.world.vocabulary import Look, is_held_out, subject

FIELDS = {"swapped": {"color", "accent"}, **{name: {name} for name in EDITS if name != "swapped"}}


def test_training_may_see_every_member_of_its_families():
    assert not any(is_held_out(look) for index in range(40) for look in family(index))


def test_held_out_families_are_of_the_subjects_and_of_held_out_edits_where_there_are_any():
    for index in range(40):
        first, *others = held_out_family(index)
        assert first == subject(index)
        for other, choices in zip(others, edits(first).values(), strict=True):
            assert other in choices
            assert is_held_out(other) or not any(is_held_out(each) for each in choices)


def test_members_differ_from_the_first_in_what_their_name_says_alone():
    for index in range(40):
        first, *others = (asdict(look) for look in family(index))
        for name, other in zip(EDITS, others, strict=True):
            assert {field for field in first if first[field] != other[field]} == FIELDS[name]


def test_every_edit_can_be_seen():
    for index in range(40):
        looks = family(index)
        assert looks[0].pattern != "plain"
        assert looks[0].marking is not None
        for look in looks:
            assert len({look.color, look.accent, look.marking_color}) == 3


def test_a_swapped_individual_has_both_colours_in_the_other_place():
    look = Look("dog", "red", "blue", "striped", "collar", "green")
    assert edits(look)["swapped"] == [Look("dog", "blue", "red", "striped", "collar", "green")]
    assert [len(edits(look)[name]) for name in EDITS] == [15, 1, 7, 7, 3, 3, 7]


def test_a_family_is_the_same_each_time():
    again = family.__wrapped__(3)
    assert again == family(3) != family(4)


def test_queries_stand_before_another_background_than_all_members():
    scenes = [family_scene(0, photo) for photo in range(len(MEMBERS) + 5)]
    members, queries = scenes[: len(MEMBERS)], scenes[len(MEMBERS) :]
    assert tuple(scene.objects[0].look for scene in members) == held_out_family(0)
    assert {scene.objects[0].look for scene in queries} == {subject(0)}
    assert len({scene.background for scene in members}) == 1
    assert len({scene.background for scene in queries} - {members[0].background}) == 5


def photos(*queries):
    """One family with a photo along each axis for its members, and these queries."""
    return torch.cat([torch.eye(len(MEMBERS)), torch.tensor(queries, dtype=torch.float)])[None]


def test_cosines_are_those_of_queries_with_members():
    query = [0.0] * len(MEMBERS)
    query[0], query[2] = 3.0, 4.0
    found = member_cosines(2 * photos(query))
    assert found.shape == (1, 1, len(MEMBERS))
    torch.testing.assert_close(found[0, 0, :3], torch.tensor([0.6, 0.0, 0.8]))
    assert not found_in_family(found)


def test_an_individual_is_found_among_its_family_and_among_all():
    first, second = photos([1.0, 0, 0, 0, 0, 0, 0, 0.5]), photos([0.5, 0, 0, 0, 0, 0, 0, 1.0])
    both = torch.cat([first, second.roll(1, -1)])
    assert found_in_family(member_cosines(both)).tolist() == [[True], [False]]
    # The second query lies along the first family's individual: 1.0 there and 0.5 at its own.
    assert found_among_all(both).tolist() == [[True], [False]]
