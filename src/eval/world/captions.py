"""How well a generator follows captions that take more and more reading, by the ground truth of the world."""

from collections.abc import Mapping, Sequence
from itertools import islice, permutations
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from src.data.files import write_text
from src.data.images import load_image
from src.data.pictures import image_grid
from src.data.request import Generator, Request
from src.data.world.caption_tests import CaptionTest, caption_tests
from src.data.world.render import render
from src.data.world.vocabulary import Look
from src.eval.draw import draw_missing, manifest_lines
from src.eval.profile import Profile
from src.eval.protocols.concept import as_json
from src.eval.results.results import Table, provenance, write_results
from src.eval.statistics.bootstrap import Interval, bootstrap_mean
from src.eval.world.objects import count_objects, native, object_images
from src.eval.world.probe import Probe

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


Summary = dict[str, dict[str, Interval]]
"""By kind, ``all`` first, the interval of every score."""

ALL = "all"
HEADINGS = {"drawn": "drawn", "ceiling": "ceiling: its scene", "chance": "chance: another scene"}
"""By arm."""


def summarise(tests: Sequence[CaptionTest], scores: Mapping[str, Sequence[float]], seed: int) -> Summary:
    """Intervals over all images and over those of each kind; images of one caption are one cluster.

    Args:
        tests: One per image.
        scores: By name, one per image.
        seed: Of the bootstrap.
    """
    found: Summary = {}
    for kind, places in _places(tests).items():
        captions = [[tests[at].caption for at in places]]
        found[kind] = {
            name: bootstrap_mean([values[at] for at in places], captions, seed) for name, values in scores.items()
        }
    return found


def kind_tables(
    tests: Sequence[CaptionTest],
    told: Sequence[str],
    read: Sequence[float],
    arms: Mapping[str, Summary],
    profile: str,
) -> list[Table]:
    """One table for all kinds together and one for each: a line per score, a column per arm.

    Args:
        tests: One per image.
        told: What the generator was asked for.
        read: What share of it the generator takes.
        arms: Of each key of ``HEADINGS``; ``drawn`` has every score.
        profile: Its name.
    """
    return [
        Table(
            f"{kind}: {_about([told[at] for at in places], [read[at] for at in places])}, profile {profile}",
            ["mean [95%]", *HEADINGS.values()],
            [[name, *(str(arms[arm][kind].get(name, "")) for arm in HEADINGS)] for name in arms["drawn"][kind]],
        )
        for kind, places in _places(tests).items()
    ]


def _places(tests: Sequence[CaptionTest]) -> dict[str, list[int]]:
    """By kind, ``all`` first, which images belong to it."""
    kinds = {kind: [at for at, test in enumerate(tests) if test.kind == kind] for kind in _kinds(tests)}
    return {ALL: list(range(len(tests))), **kinds}


def _kinds(tests: Sequence[CaptionTest]) -> list[str]:
    return list(dict.fromkeys(test.kind for test in tests))


def _about(told: Sequence[str], read: Sequence[float]) -> str:
    words = sum(len(text.split()) for text in told) / len(told)
    return f"{len(told)} images, captions of {words:.0f} words, {sum(read) / len(read):.0%} of them read"


LOSS = "denoising_loss"
WORDINGS = {"own": "the caption of the kind", "short": "the plainest caption of the same scene"}
"""What a generator is told; scores do not depend on it."""
SHOWN = 8
CELL = 96


class CaptionProtocol:
    """Held-out captions, short, long and compositional, drawn once each and held against their scenes.

    Scores are those of ``CaptionScorer`` and, where the generator has ``denoising_errors``, ``denoising_loss``: its
    loss on renders of the scenes, the lower, the better. Ceiling: the same scores of these renders. Chance: of renders
    of the next scene of the kind. A generator whose text encoder takes less than a caption has ``readable(prompt)`` and
    is given what it can read; the share of words is reported.

    Args:
        kinds: Keys of ``caption_tests.KINDS``.
        num_captions: Of each kind.
        num_seeds: Images per caption.
        profile: Its CLIP and scale.
        probe: Reads objects.
        images_dir: Where the images go; what it holds is not drawn again.
        wording: What the generator is told, ``own`` or ``short``: with the short caption of every scene, a base model
            shows what it can draw where nothing has to be understood.
        seed: Of the first image, of the loss's noise and of the bootstrap; every image has its own.

    Raises:
        ValueError: If there is nothing to draw, or a kind or the wording is unknown.
    """

    def __init__(
        self,
        kinds: Sequence[str],
        num_captions: int,
        num_seeds: int,
        profile: Profile,
        probe: Probe,
        images_dir: str,
        wording: str = "own",
        seed: int = 0,
    ) -> None:
        if wording not in WORDINGS:
            raise ValueError(f"wording is {wording!r}; choose one of {', '.join(WORDINGS)}")
        if num_seeds < 1:
            raise ValueError(f"need at least one seed, got {num_seeds}")
        self.tests = [test for test in caption_tests(kinds, num_captions) for _ in range(num_seeds)]
        self.told = [test.caption if wording == "own" else test.short for test in self.tests]
        self.seeds = [seed + at for at in range(len(self.tests))]
        self.profile, self.scorer, self.images_dir = profile, CaptionScorer(profile, probe), Path(images_dir)
        self.num_captions, self.num_seeds, self.wording, self.seed = num_captions, num_seeds, wording, seed

    def requests(self, concepts: Sequence[object] = ()) -> list[Request]:
        """Every caption with every of its seeds, kind by kind."""
        return [Request(told, seed, truncate=True) for told, seed in zip(self.told, self.seeds, strict=True)]

    def check(self, concepts: Sequence[object]) -> None:
        """Refuse what cannot be scored before anything is drawn: the encoders' weights may not be there."""
        self.profile.identity()

    def shown(self, concepts: Sequence[object]) -> dict[str, Image.Image]:
        """No picture stands beside the images."""
        return {}

    def run(self, generator: Generator, concepts: Sequence[object], run_dir: str) -> dict[str, Any]:
        """Generate, score, write ``metrics.json``, tables, ``images.jsonl``, ``report.html`` and a grid."""
        self.check(concepts)
        requests = self.requests()
        files = draw_missing(generator, requests, self.images_dir)
        write_text(Path(run_dir) / "images.jsonl", manifest_lines(requests, files))
        images, renders = [load_image(path) for path in files], [render(test.scene) for test in self.tests]
        arms = {"drawn": images, "ceiling": renders, "chance": [renders[at] for at in self._next_of_kind()]}
        scores = {arm: self.scorer(self.tests, of) for arm, of in arms.items()}
        read = [getattr(generator, "readable", str)(told) for told in self.told]
        scores["drawn"] |= self._losses(generator, renders, read)
        summary = {arm: summarise(self.tests, of, self.seed) for arm, of in scores.items()}
        shares = [len(ours.split()) / len(told.split()) for ours, told in zip(read, self.told, strict=True)]
        tables = kind_tables(self.tests, self.told, shares, summary, self.profile.name)
        rows = self._rows(files, {"read": shares, **scores["drawn"]})
        metrics = self._metrics(summary) | {"generator": generator.identity()} | provenance()
        write_results(run_dir, "Captions", metrics, tables, rows, {"grid": self._grid(images, renders)})
        return metrics

    def _next_of_kind(self) -> list[int]:
        """Of each image the place of one of the next caption of its kind, of the last caption that of the first."""
        each = self.num_captions * self.num_seeds
        return [at // each * each + (at + self.num_seeds) % each for at in range(len(self.tests))]

    def _losses(
        self, generator: Generator, renders: Sequence[Image.Image], read: Sequence[str]
    ) -> dict[str, list[float]]:
        """Models that do not denoise have none."""
        measure = getattr(generator, "denoising_errors", None)
        return {} if measure is None else {LOSS: measure(renders, read, self.seeds)}

    def _rows(self, files: Sequence[Path], columns: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
        return [
            {"kind": test.kind, "prompt": test.caption, "seed": seed, "file": path.name}
            | {name: values[at] for name, values in columns.items()}
            for at, (test, seed, path) in enumerate(zip(self.tests, self.seeds, files, strict=True))
        ]

    def _metrics(self, summary: Mapping[str, Summary]) -> dict[str, Any]:
        scores = list(summary["drawn"][ALL])
        return {
            "protocol": "captions",
            "wording": self.wording,
            "num_images": len(self.tests),
            "seed": self.seed,
            **self.profile.identity(),
            "overall": as_json(summary["drawn"]),
            "ceiling": as_json(summary["ceiling"]),
            "chance": as_json(summary["chance"]),
            "compared": {
                "rows": {},
                "factors": ["prompt"],
                "by": "kind",
                "scores": scores,
                "frontiers": [("clip_t", "bound"), *([(LOSS, "bound")] if LOSS in scores else [])],
            },
        }

    def _grid(self, images: Sequence[Image.Image], renders: Sequence[Image.Image]) -> Image.Image:
        """Of each kind a row of images over the scenes that they were to show."""
        cells, captions = [], []
        for kind in dict.fromkeys(test.kind for test in self.tests):
            shown = [at for at, test in enumerate(self.tests) if test.kind == kind][:SHOWN]
            for of in (images, renders):
                cells += [ImageOps.contain(of[at], (CELL, CELL)) for at in shown]
            captions += [self.told[at] for at in shown] + ["the scene" for _ in shown]
        return image_grid(cells, min(SHOWN, self.num_captions * self.num_seeds), captions)
