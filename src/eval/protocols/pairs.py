"""Two concepts in one image: does each keep its own identity, or do they mix?"""

from collections.abc import Sequence
from itertools import islice, permutations
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor

from src.data.files import write_text
from src.data.images import load_image
from src.data.pictures import image_grid
from src.data.request import Generator, Request
from src.eval.draw import draw_missing, manifest_lines
from src.eval.profile import Profile
from src.eval.protocols.concept import CELL, Row, as_json
from src.eval.protocols.subjects import ScoredConcept, check_references
from src.eval.results.results import Table, provenance, write_results
from src.eval.scores.similarity import pair_mean, within_set
from src.eval.statistics.bootstrap import bootstrap_mean

LEFT, RIGHT, TOP, BOTTOM = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0), (0.0, 0.0, 1.0, 0.5), (0.0, 0.5, 1.0, 1.0)
LAYOUTS = {"left of": (LEFT, RIGHT), "right of": (RIGHT, LEFT), "above": (TOP, BOTTOM), "below": (BOTTOM, TOP)}
"""Where a relation puts the first and the second: left, top, right, bottom as shares of the image."""

GREY = (127, 127, 127)
SCORES = ("identity_margin", "both_own", "clip_t")
SHOWN = 4

Pair = tuple[ScoredConcept, ScoredConcept]


class PairProtocol:
    """Identity of two concepts in one image, on the halves that the prompt's relation assigns to them.

    The margin of a crop is its DINO to its own references minus that to the other's; an image's margin is the mean of
    its two. Control: the same prompts and seeds with plain class nouns. Ceiling: the references themselves.

    Args:
        prompts: Templates with ``{first}`` and ``{second}`` and one of ``LAYOUTS``.
        num_seeds: Images per prompt and ordered pair.
        profile: Its CLIP gives CLIP-T on the whole image, its DINO identity on the crops.
        images_dir: Where the images go; what it holds is not drawn again.
        seed: Of the first image of each prompt, and of the bootstrap.

    Raises:
        ValueError: If a template lacks a slot or a relation, or the profile asks for another text or other pairs.
    """

    def __init__(
        self,
        prompts: Sequence[str],
        num_seeds: int,
        profile: Profile,
        images_dir: str,
        seed: int = 0,
    ) -> None:
        profile.require(["class_noun"], ["all"])
        if not prompts or num_seeds < 1:
            raise ValueError(f"need at least one prompt and one seed, got {len(prompts)} and {num_seeds}")
        self.layouts = {prompt: layout(prompt) for prompt in prompts}
        self.num_seeds, self.seed = num_seeds, seed
        self.profile, self.images_dir = profile, Path(images_dir)

    def requests(self, concepts: Sequence[ScoredConcept]) -> list[Request]:
        """Everything to draw: pair by pair, both arms, prompt by prompt, seed by seed."""
        return [
            request
            for pair in permutations(concepts, 2)
            for arm in ("control", "concept")
            for request in self._requests(pair, arm)
        ]

    def check(self, concepts: Sequence[ScoredConcept]) -> None:
        """Refuse what could not be scored, before anything is trained or drawn for it.

        Raises:
            ValueError: If there are fewer than two concepts, one has fewer than two references, or an encoder's
                weights are missing.
        """
        if len(concepts) < 2:
            raise ValueError(f"a pair needs two concepts, got {len(concepts)}; add bank.NAME=PATH for each")
        check_references(concepts)
        self.profile.identity()

    def shown(self, concepts: Sequence[ScoredConcept]) -> dict[str, Image.Image]:
        """A picture to look at beside the images, by what a row calls it."""
        return {concept.name: concept.references[0] for concept in concepts}

    def run(self, generator: Generator, concepts: Sequence[ScoredConcept], run_dir: str) -> dict[str, Any]:
        """Generate, score, write ``metrics.json``, ``per_image.csv``, ``table.md``, ``report.html`` and grids.

        Raises:
            ValueError: As of ``check``.
        """
        self.check(concepts)
        requests = self.requests(concepts)
        paths = draw_missing(generator, requests, self.images_dir)
        write_text(Path(run_dir) / "images.jsonl", manifest_lines(requests, paths))
        remaining = iter(paths)
        references = {concept.name: self.profile.dino.encode_images(concept.references) for concept in concepts}
        rows: list[Row] = []
        grids = {}
        for pair in permutations(concepts, 2):
            for arm in ("control", "concept"):
                files = list(islice(remaining, len(self._places())))
                images = [load_image(path) for path in files]
                scored = self._score(pair, arm, images, references)
                rows += [row | {"file": path.name} for row, path in zip(scored, files, strict=True)]
                cells = [ImageOps.contain(image, (CELL, CELL)) for image in images]
                grids[f"grid_{_name(pair)}_{arm}"] = image_grid(cells, self.num_seeds)
        summary = {arm: self._summary([row for row in rows if row["arm"] == arm]) for arm in ("control", "concept")}
        ceiling = _ceiling(references)
        metrics = {
            "protocol": "pairs",
            **self.profile.identity(),
            "generator": generator.identity(),
            "prompts": list(self.layouts),
            "num_seeds": self.num_seeds,
            "seed": self.seed,
            "overall": as_json(summary) | {"ceiling": {"identity_margin": ceiling}},
            "compared": {"rows": {"arm": "concept"}, "factors": ["prompt", "pair"], "scores": list(SCORES)},
            **provenance(),
        }
        lines = [[arm, *(str(values[score]) for score in SCORES)] for arm, values in summary.items()]
        title = f"Two concepts in one image, mean [95% interval], profile {self.profile.name}"
        table = Table(title, ["", *SCORES], [*lines, ["ceiling", f"{ceiling:.3f}", "", ""]])
        write_results(run_dir, "Two concepts in one image", metrics, [table], rows, grids)
        return metrics

    def _places(self) -> list[tuple[str, int]]:
        return [(prompt, self.seed + seed) for prompt in self.layouts for seed in range(self.num_seeds)]

    def _requests(self, pair: Pair, arm: str) -> list[Request]:
        first, second = (c.class_noun if arm == "control" else f"<{c.name}>" for c in pair)
        return [Request(prompt.format(first=first, second=second), seed) for prompt, seed in self._places()]

    def _score(self, pair: Pair, arm: str, images: list[Image.Image], references: dict[str, Tensor]) -> list[Row]:
        places = self._places()
        first, second = (references[concept.name] for concept in pair)
        crops = [[crop(im, self.layouts[p][at]) for im, (p, _) in zip(images, places, strict=True)] for at in (0, 1)]
        left, right = (self.profile.dino.encode_images(side) for side in crops)
        margins = torch.stack(
            [pair_mean(left, first) - pair_mean(left, second), pair_mean(right, second) - pair_mean(right, first)]
        )
        plain = [p.format(first=pair[0].class_noun, second=pair[1].class_noun) for p, _ in places]
        clip = self.profile.clip
        texts = self.profile.text_score(clip.encode_images(images), clip.encode_texts(plain))
        return [
            {"pair": _name(pair), "arm": arm, "prompt": prompt, "seed": seed}
            | {"first_margin": float(margins[0, index]), "second_margin": float(margins[1, index])}
            | {"identity_margin": float(margins[:, index].mean()), "both_own": float((margins[:, index] > 0).all())}
            | {"clip_t": float(texts[index])}
            for index, (prompt, seed) in enumerate(places)
        ]

    def _summary(self, rows: list[Row]) -> dict[str, Any]:
        groups = [[row[factor] for row in rows] for factor in ("prompt", "pair")]
        return {score: bootstrap_mean([row[score] for row in rows], groups, self.seed) for score in SCORES}


def layout(prompt: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Boxes of the first and the second concept, from the relation that the prompt names.

    Raises:
        ValueError: If a slot is missing or no relation fixes the layout.
    """
    if prompt.count("{first}") != 1 or prompt.count("{second}") != 1:
        raise ValueError(f"the prompt {prompt!r} needs {{first}} and {{second}} once each")
    between = prompt.partition("{first}")[2].partition("{second}")[0].split()
    for relation, boxes in LAYOUTS.items():
        if relation in " ".join(between):
            return boxes
    raise ValueError(f"the prompt {prompt!r} has no layout; put one of {', '.join(LAYOUTS)} between the two")


def crop(image: Image.Image, box: tuple[float, ...]) -> Image.Image:
    """A part of the image, padded to a square: the encoder's centre crop would cut off its ends."""
    width, height = image.size
    left, top, right, bottom = (
        round(share * side) for share, side in zip(box, (width, height, width, height), strict=True)
    )
    part = image.crop((left, top, right, bottom))
    return ImageOps.pad(part, (max(part.size),) * 2, color=GREY)


def _ceiling(references: dict[str, Tensor]) -> float:
    """Mean margin of the reference images, which need no prompt and stand alone in theirs."""
    margins = [
        within_set(references[a]).mean() - pair_mean(references[a], references[b]).mean()
        for a, b in permutations(references, 2)
    ]
    return float(torch.stack(margins).mean())


def _name(pair: Pair) -> str:
    return f"{pair[0].name}_{pair[1].name}"
