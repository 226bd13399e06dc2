"""How much of a caption an image shows, measured by the caption's ground truth."""

from collections.abc import Sequence
from itertools import islice, permutations

import numpy as np
from PIL import Image

from src.data.world.caption_tests import CaptionTest
from src.data.world.vocabulary import Look
from src.eval.object_count import count_objects
from src.eval.object_regions import native, object_images
from src.eval.probe import Probe
from src.eval.profile import Profile

SCORES = ("object", "color", "pattern", "bound", "count", "clip_t")

Attributes = tuple[str, str, str]
"""Noun, colour and pattern of one object."""


class CaptionScorer:
    """One number per image for each of ``SCORES``; the higher, the better.

    ``object``, ``color`` and ``pattern``: share of the caption's objects of which the probe reads it right in the
    region that the caption gives them; where it gives none, in the order that fits best. ``bound``: share of objects of
    which noun and colour are right at once. ``count``: whether as many objects are there as the caption says.
    ``clip_t``: the profile's CLIP-T with the scene's short caption, whatever the caption of the test: the world's CLIP
    takes 40 tokens, and has learnt no other words than short captions have.

    Args:
        profile: Its CLIP and scale.
        probe: Reads one object at a time.
    """

    def __init__(self, profile: Profile, probe: Probe) -> None:
        self.profile, self.probe = profile, probe

    def __call__(self, tests: Sequence[CaptionTest], images: Sequence[Image.Image]) -> dict[str, list[float]]:
        """Scores of each image, held against its own test."""
        small = [native(image) for image in images]
        right = self._right(tests, small)
        each = {name: [float(one[:, at].mean()) for one in right] for at, name in enumerate(SCORES[:3])}
        clip = self.profile.clip
        texts = clip.encode_texts([test.short for test in tests])
        return {
            **each,
            "bound": [float(_bound(one).mean()) for one in right],
            "count": [float(found == len(one.looks)) for found, one in zip(count_objects(small), tests, strict=True)],
            "clip_t": self.profile.text_score(clip.encode_images(images), texts).tolist(),
        }

    def _right(self, tests: Sequence[CaptionTest], images: Sequence[Image.Image]) -> list[np.ndarray]:
        """Per image, of each object: whether noun, colour and pattern are right, ``(objects, 3)``."""
        shown = [one for test, image in zip(tests, images, strict=True) for one in object_images(test, image)]
        read = self.probe.read(shown)
        seen = iter(zip(read["object"], read["color"], read["pattern"], strict=True))
        return [_compared(list(islice(seen, len(test.looks))), test) for test in tests]


def _compared(seen: Sequence[Attributes], test: CaptionTest) -> np.ndarray:
    said = [_attributes(look) for look in test.looks]
    orders = [tuple(said)] if test.placed else permutations(said)
    return max((_equal(seen, order) for order in orders), key=lambda one: (_bound(one).sum(), one.sum()))


def _equal(seen: Sequence[Attributes], said: Sequence[Attributes]) -> np.ndarray:
    pairs = zip(seen, said, strict=True)
    return np.array([[word == other for word, other in zip(ours, theirs, strict=True)] for ours, theirs in pairs])


def _bound(right: np.ndarray) -> np.ndarray:
    return right[:, 0] & right[:, 1]


def _attributes(look: Look) -> Attributes:
    return look.noun, look.color, look.pattern
