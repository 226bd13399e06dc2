"""Texts for the world's language model: short and long captions, questions about them, and words to copy."""

import numpy as np

from src.data.texts import Text, copied, draw_words
from src.data.world.long_captions import long_scene, questions
from src.data.world.scenes import attribute_scene, full_caption, sample_scene
from src.data.world.vocabulary import COLORS, NOUNS, PATTERNS

SHARES = {"short": 0.16, "long": 0.2, "question": 0.24, "copy": 0.4}


def world_text(seed: int) -> Text:
    """Make one text; the same seed always gives the same one."""
    rng = np.random.default_rng([seed, 7])
    kind = str(rng.choice(list(SHARES), p=list(SHARES.values())))
    if kind == "short":
        return _short(seed, rng)
    if kind == "long":
        return Text(long_scene(seed).caption)
    return _question(seed, rng) if kind == "question" else _copy(rng)


def _short(seed: int, rng: np.random.Generator) -> Text:
    scene = sample_scene(seed)
    captions = [scene.caption, full_caption(scene), attribute_scene(seed).caption]
    return Text(captions[int(rng.choice(3, p=[0.5, 0.3, 0.2]))])


def _question(seed: int, rng: np.random.Generator) -> Text:
    """Write a long caption, and what it says about each noun that occurs once."""
    scene = long_scene(seed)
    text, known = f"{scene.caption}.", []
    asked = questions(scene)
    for index in rng.permutation(len(asked)):
        question, answer = asked[index]
        text = f"{text} {question} {answer}."
        end = len(text) - 1
        # Colour and pattern count as known; "and" between them needs no context.
        color, pattern = answer.split(" and ")
        known += [(end - len(answer), end - len(answer) + len(color)), (end - len(pattern), end)]
    return Text(text, tuple(known), "recall" if known else "")


def _copy(rng: np.random.Generator) -> Text:
    vocabulary = tuple(COLORS) if rng.random() < 0.5 else (*NOUNS, *COLORS, *PATTERNS)
    return copied(draw_words(vocabulary, 2, 10, rng), times=3)
