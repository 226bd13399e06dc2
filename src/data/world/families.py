"""Families: an individual and those that share everything with it but one thing."""

from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from src.data.world.vocabulary import COLORS, MARKINGS, NOUNS, PATTERNS, Look, draw_look, is_held_out, subject

EDITS = ("noun", "swapped", "color", "accent", "pattern", "marking", "marking_color")
MEMBERS = ("same", *EDITS)
"""The individual itself, then what differs in each other member of its family."""


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
def family(index: int) -> tuple[Look, ...]:
    """Return individuals that training may all see, in the order of ``MEMBERS``.

    The first has a marking and a pattern that shows both colours, so that every edit can be seen.

    Args:
        index: Number of the family, from 0.
    """
    rng = np.random.default_rng([index, 4])
    while True:
        look = draw_look(rng, marked=True)
        allowed = [[each for each in looks if not is_held_out(each)] for looks in edits(look).values()]
        if look.pattern != "plain" and not is_held_out(look) and all(allowed):
            return (look, *(looks[rng.integers(len(looks))] for looks in allowed))


@lru_cache(maxsize=64)
def held_out_family(index: int) -> tuple[Look, ...]:
    """Return the held-out ``subject(index)`` and its edits, in the order of ``MEMBERS``.

    An edit is held out, too, if any of its kind is. To ask it of all edits would leave few families, and those alike,
    because the hash is linear: the same difference changes all hashes in the same way.
    """
    look, rng = subject(index), np.random.default_rng([index, 8])
    choices = [[each for each in looks if is_held_out(each)] or looks for looks in edits(look).values()]
    return (look, *(looks[rng.integers(len(looks))] for looks in choices))


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
