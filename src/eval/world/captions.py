"""How well a generator follows captions that take more and more reading, by the ground truth of the world."""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import islice, permutations
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from src.data.images import Picture
from src.data.ranges import Count, Seed
from src.data.request import Generator, Request
from src.data.world.caption_tests import CaptionTest, caption_tests
from src.data.world.render import render
from src.data.world.vocabulary import Look
from src.eval.encoders.models import BATCH, read_ahead
from src.eval.grid import Grid
from src.eval.profile import Profile
from src.eval.protocols.base import Frame, Item, Protocol, scored_rows
from src.eval.results.results import Row, Table
from src.eval.statistics.bootstrap import Interval, bootstrap_mean
from src.eval.world.objects import count_objects, native, object_images
from src.eval.world.probe import Probe

ATTRIBUTES = ("object", "color", "pattern")

Attributes = tuple[str, str, str]
"""Noun, colour and pattern of one object."""


class CaptionScorer:
    """One number per image for each of ``CaptionProtocol.scores``; the higher, the better.

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

    def __call__(self, tests: Sequence[CaptionTest], pictures: Sequence[Picture]) -> dict[str, list[float]]:
        """Scores of each image, held against its own test; a batch of images is open at a time."""
        texts = self.profile.clip.encode_texts([test.short for test in tests])
        found: dict[str, list[float]] = {}
        start = 0
        for images in read_ahead(lambda image: image, pictures):
            at = slice(start, start := start + len(images))
            for name, values in self._scores(tests[at], images, texts[at]).items():
                found.setdefault(name, []).extend(values)
        return found

    def _scores(
        self, tests: Sequence[CaptionTest], images: Sequence[Image.Image], texts: Tensor
    ) -> dict[str, list[float]]:
        small = [native(image) for image in images]
        right = self._right(tests, small)
        each = {name: [float(one[:, at].mean()) for one in right] for at, name in enumerate(ATTRIBUTES)}
        return {
            **each,
            "bound": [float(_bound(one).mean()) for one in right],
            "count": [float(found == len(one.looks)) for found, one in zip(count_objects(small), tests, strict=True)],
            "clip_t": self.profile.text_score(self.profile.clip.encode_images(images), texts).tolist(),
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


Summary = dict[str, dict[str, Interval]]
"""By kind, ``all`` first, the interval of every score."""

ALL = "all"
HEADINGS = {"drawn": "drawn", "ceiling": "ceiling: its scene", "chance": "chance: another scene"}
"""By arm."""
LOSS = "denoising_loss"
WORDINGS = {"own": "the caption of the kind", "short": "the plainest caption of the same scene"}
"""What a generator is told; scores do not depend on it."""
SHOWN = 8


def summarise(tests: Sequence[CaptionTest], scores: Mapping[str, Sequence[float]], seed: int) -> Summary:
    """Intervals over all images and over those of each kind; images of one caption are one cluster.

    Args:
        tests: One per image.
        scores: By name, one per image.
        seed: Seeds the bootstrap.
    """
    found: Summary = {}
    for kind, places in _places(tests).items():
        captions = [[tests[at].caption for at in places]]
        found[kind] = {
            name: bootstrap_mean([values[at] for at in places], captions, seed) for name, values in scores.items()
        }
    return found


def _places(tests: Sequence[CaptionTest]) -> dict[str, list[int]]:
    """By kind, ``all`` first, which images belong to it."""
    places: dict[str, list[int]] = {ALL: list(range(len(tests)))}
    for at, test in enumerate(tests):
        places.setdefault(test.kind, []).append(at)
    return places


class CaptionProtocol(Protocol[CaptionTest]):
    """Held-out captions, short, long and compositional, drawn once each and held against their scenes.

    Scores are those of ``CaptionScorer`` and, where the generator has ``denoising_errors``, ``denoising_loss``: its
    loss on renders of the scenes, the lower, the better. Ceiling: the same scores of these renders. Chance: of renders
    of the next scene of the kind. A generator whose text encoder takes less than a caption has ``readable(prompt)`` and
    is given what it can read; the share of words is reported.

    Args:
        kinds: Keys of ``caption_tests.KINDS``.
        num_captions: How many captions of each kind.
        num_seeds: Images per caption.
        profile: Its CLIP and scale.
        probe: Reads objects.
        images_dir: Where the images go; what it holds is not drawn again.
        wording: What the generator is told, ``own`` or ``short``: with the short caption of every scene, a base model
            shows what it can draw where nothing has to be understood.
        seed: Seeds the first image, the loss's noise and the bootstrap; every image has a seed of its own.

    Raises:
        ValueError: If there is nothing to draw, or a kind or the wording is unknown.
    """

    name, title, settings = "captions", "Captions", ("wording", "num_images")
    scores = (*ATTRIBUTES, "bound", "count", "clip_t")

    def __init__(
        self,
        kinds: Sequence[str],
        num_captions: Count,
        num_seeds: Count,
        profile: Profile,
        probe: Probe,
        images_dir: str,
        wording: str = "own",
        seed: Seed = 0,
    ) -> None:
        super().__init__(profile, images_dir, seed)
        if wording not in WORDINGS:
            raise ValueError(f"wording is {wording!r}; choose one of {', '.join(WORDINGS)}")
        self.tests = [test for test in caption_tests(kinds, num_captions) for _ in range(num_seeds)]
        self.scorer, self.wording = CaptionScorer(profile, probe), wording
        self.num_captions, self.num_seeds, self.num_images = num_captions, num_seeds, len(self.tests)

    def items(self, concepts: Sequence[object] = ()) -> list[Item[CaptionTest]]:
        """Every caption with every of its seeds, kind by kind; rows of both wordings can be paired."""
        return [
            Item(
                Request(test.caption if self.wording == "own" else test.short, seed, truncate=True),
                {"kind": test.kind, "prompt": test.caption, "seed": seed},
                test,
            )
            for seed, test in enumerate(self.tests, self.seed)
        ]

    def score(self, frame: Frame[CaptionTest], generator: Generator) -> list[Row]:
        """What share of the caption the generator reads, the scores and, of models that denoise, the loss."""
        told, seeds = [item.request.prompt for item in frame.items], [item.request.seed for item in frame.items]
        read = [getattr(generator, "readable", str)(text) for text in told]
        shares = [len(ours.split()) / len(text.split()) for ours, text in zip(read, told, strict=True)]
        scores = {"read": shares, **self.scorer(frame.targets, frame.paths)}
        if (measure := getattr(generator, "denoising_errors", None)) is not None:
            # Whole batches of the generator, so that their number changes nothing.
            size = generator.batch_size * max(1, BATCH // generator.batch_size)
            parts = [slice(start, start + size) for start in range(0, len(read), size)]
            scores[LOSS] = [
                error
                for at in parts
                for error in measure([render(test.scene) for test in frame.targets[at]], read[at], seeds[at])
            ]
        return scored_rows(frame.places, scores, scores)

    def summarise(self, frame: Frame[CaptionTest]) -> dict[str, Summary]:
        """By arm: the images, renders of their scenes, and renders of other scenes."""
        tests = frame.targets
        renders = [partial(render, test.scene) for test in tests]
        names = [name for name in (*self.scores, LOSS) if name in frame.rows[0]]
        scores = {
            "drawn": {name: [row[name] for row in frame.rows] for name in names},
            "ceiling": self.scorer(tests, renders),
            "chance": self.scorer(tests, [renders[at] for at in self._next_of_kind()]),
        }
        return {arm: summarise(tests, found, self.seed) for arm, found in scores.items()}

    def _next_of_kind(self) -> list[int]:
        """Of each image the place of one of the next caption of its kind, of the last caption that of the first."""
        each = self.num_captions * self.num_seeds
        return [at // each * each + (at + self.num_seeds) % each for at in range(len(self.tests))]

    def metrics(self, frame: Frame[CaptionTest]) -> dict[str, Any]:
        """All three arms."""
        return {"overall": frame.summary["drawn"], **{arm: frame.summary[arm] for arm in ("ceiling", "chance")}}

    def compared(self, frame: Frame[CaptionTest]) -> dict[str, Any]:
        """All images, and those of each kind; the loss too where there is one."""
        scores = list(frame.summary["drawn"][ALL])
        frontiers = [("clip_t", "bound"), *([(LOSS, "bound")] if LOSS in scores else [])]
        return {"rows": {}, "factors": ["prompt"], "by": "kind", "scores": scores, "frontiers": frontiers}

    def tables(self, frame: Frame[CaptionTest]) -> list[Table]:
        """One table for all kinds together and one for each: a line per score, a column per arm."""
        tables = []
        for kind, places in _places(frame.targets).items():
            words = sum(len(frame.items[at].request.prompt.split()) for at in places) / len(places)
            read = sum(frame.rows[at]["read"] for at in places) / len(places)
            about = f"{len(places)} images, captions of {words:.0f} words, {read:.0%} of them read"
            arms = [frame.summary[arm][kind] for arm in HEADINGS]
            lines = [[name, *(str(arm.get(name, "")) for arm in arms)] for name in arms[0]]
            title = f"{kind}: {about}, profile {self.profile.name}"
            tables.append(Table(title, ["mean [95%]", *HEADINGS.values()], lines))
        return tables

    def grids(self, frame: Frame[CaptionTest]) -> dict[str, Grid]:
        """Of each kind a row of images over the scenes that they were to show."""
        cells: list[Picture] = []
        captions = []
        for part in frame.parts("kind"):
            cells += part.paths[:SHOWN]
            cells += [partial(render, test.scene) for test in part.targets[:SHOWN]]
            captions += [item.request.prompt for item in part.items[:SHOWN]]
            captions += ["the scene"] * len(part.items[:SHOWN])
        return {"grid": self.grid(cells, min(SHOWN, self.num_captions * self.num_seeds), captions)}
