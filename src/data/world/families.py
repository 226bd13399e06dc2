"""Families: an individual and those that share everything with it but one thing."""

from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from src.data.world.vocabulary import COLORS, MARKINGS, NOUNS, PATTERNS, Look, is_held_out

EDITS = ("noun", "swapped", "color", "accent", "pattern", "marking", "marking_color")
MEMBERS = ("same", *EDITS)
"""The individual itself, then what differs in each other member of its family."""


SHOWING = tuple(pattern for pattern in PATTERNS if pattern != "plain")
"""Patterns that show both colours."""


def swapped(look: Look) -> Look:
    """Return the individual whose main and second colour have changed places."""
    return replace(look, color=look.accent, accent=look.color)


def edits(look: Look) -> dict[str, list[Look]]:
    """Return every individual that shares all else, by what differs; a new colour is none of the three of ``look``."""
    new = [color for color in COLORS if color not in (look.color, look.accent, look.marking_color)]
    return {
        "noun": [replace(look, noun=noun) for noun in NOUNS if noun != look.noun],
        "swapped": [swapped(look)],
        "color": [replace(look, color=color) for color in new],
        "accent": [replace(look, accent=color) for color in new],
        "pattern": [replace(look, pattern=pattern) for pattern in PATTERNS if pattern != look.pattern],
        "marking": [replace(look, marking=marking) for marking in (*MARKINGS, None) if marking != look.marking],
        "marking_color": [replace(look, marking_color=color) for color in new],
    }


@lru_cache(maxsize=64)
def family(index: int, held_out: bool = False) -> tuple[Look, ...]:
    """Return the individuals of one family in the order of ``MEMBERS``.

    The first has a marking and a pattern that shows both colours, so that every edit can be seen.

    Args:
        index: Number of the family, from 0.
        held_out: Whether all its members are held out; otherwise training may see them all.
    """
    rng = np.random.default_rng([index, int(held_out), 4])
    while True:
        look = _drawn(rng)
        if is_held_out(look) != held_out or is_held_out(swapped(look)) != held_out:
            continue
        allowed = []
        for looks in edits(look).values():
            allowed.append([each for each in looks if is_held_out(each) == held_out])
            if not allowed[-1]:
                break
        else:
            return (look, *(looks[rng.integers(len(looks))] for looks in allowed))


def _drawn(rng: np.random.Generator) -> Look:
    """Draw like ``draw_look``, but ten times faster: a whole family is held out only once in thousands of draws."""
    color, accent, marking_color = (list(COLORS)[at] for at in rng.permutation(len(COLORS))[:3])
    noun, pattern, marking = rng.integers((len(NOUNS), len(SHOWING), len(MARKINGS)))
    return Look(NOUNS[noun], color, accent, SHOWING[pattern], MARKINGS[marking], marking_color)


def member_cosines(embeddings: Tensor) -> Tensor:
    """Compare photos of individuals with one photo of each member of their families.

    Args:
        embeddings: ``(families, members + queries, D)``, of the photos of ``family_scene`` in their order.

    Returns:
        Cosines ``(families, queries, members)``.
    """
    unit = normalize(embeddings.float(), dim=-1)
    return unit[:, len(MEMBERS) :] @ unit[:, : len(MEMBERS)].transpose(1, 2)


def found_among_all(embeddings: Tensor) -> Tensor:
    """Tell for each photo whether its individual is nearest among the first members of all families.

    Args:
        embeddings: As ``member_cosines`` takes them.

    Returns:
        Answers ``(families, queries)``.
    """
    unit = normalize(embeddings.float(), dim=-1)
    nearest = (unit[:, len(MEMBERS) :] @ unit[:, 0].T).argmax(-1)
    return nearest == torch.arange(len(unit), device=nearest.device)[:, None]


def found_in_family(cosines: Tensor) -> Tensor:
    """Tell for each photo, ``(families, queries)``, whether the individual is nearest among its family's members."""
    return cosines.argmax(-1) == 0
