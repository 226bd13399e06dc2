"""Scores concepts on a prompt list, between the plain class noun (control) and the references themselves (ceiling)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps
from torch import Tensor

from src.data.pictures import image_grid
from src.data.request import Request
from src.eval.concept_summary import SCORES, Row, as_json, concept_table, overall_table, summarise
from src.eval.encoders import ImageEncoder, TextImageEncoder
from src.eval.manifest import IdentifiedGenerator, drawn
from src.eval.results import provenance, write_results
from src.eval.scored_concept import ScoredConcept
from src.eval.scores import clip_t, pair_mean, within_set

CELL = 160
SHOWN_SEEDS = 2


class ConceptProtocol:
    """CLIP-T, CLIP-I and DINO of each concept over prompts and seeds, as in DreamBooth (arXiv 2208.12242).

    CLIP-T is taken with the plain prompt, class noun in place of the concept. The control shares prompts and seeds
    with the concept, so that differences are paired.

    Args:
        prompts: Templates with one ``{}``, such as ``a {} on the grass``.
        num_seeds: Images per prompt and concept.
        clip: Encoder of CLIP-T and CLIP-I.
        dino: Encoder of DINO.
        profile: Name of the pair of encoders, which stands with every number.
        seed: Of the first image of each prompt, and of the bootstrap.

    Raises:
        ValueError: If a template has not exactly one slot, or there is nothing to score.
    """

    def __init__(
        self,
        prompts: Sequence[str],
        num_seeds: int,
        clip: TextImageEncoder,
        dino: ImageEncoder,
        profile: str,
        seed: int = 0,
    ) -> None:
        for prompt in prompts:
            if prompt.count("{}") != 1:
                raise ValueError(f"the prompt {prompt!r} needs one {{}}, where the concept stands: 'a {{}} at night'")
        if not prompts or num_seeds < 1:
            raise ValueError(f"need at least one prompt and one seed, got {len(prompts)} and {num_seeds}")
        self.prompts, self.num_seeds, self.seed = list(prompts), num_seeds, seed
        self.clip, self.dino, self.profile = clip, dino, profile

    def run(self, generator: IdentifiedGenerator, concepts: Sequence[ScoredConcept], run_dir: str) -> dict[str, Any]:
        """Generate, score, write ``metrics.json``, ``per_image.csv``, ``table.md``, ``report.html`` and grids.

        Raises:
            ValueError: If there is no concept, or one has fewer than two references.
        """
        _check(concepts)
        rows: list[Row] = []
        grids = {}
        for concept in concepts:
            images = self._generate(generator, concept, Path(run_dir) / "images")
            scored = [row for arm, made in images.items() for row in self._score(concept, arm, made)]
            rows += [*scored, *self._ceiling(concept)]
            grids[f"grid_{concept.name}"] = self._grid(concept, images)
        overall = summarise(rows, self.seed)
        each = {c.name: summarise([row for row in rows if row["concept"] == c.name], self.seed) for c in concepts}
        metrics = {
            "protocol": "concept",
            "profile": self.profile,
            "encoders": {"clip": self.clip.identity, "dino": self.dino.identity},
            "generator": generator.identity(),
            "prompts": self.prompts,
            "num_seeds": self.num_seeds,
            "seed": self.seed,
            "overall": as_json(overall),
            "concepts": {
                c.name: {"class_noun": c.class_noun, "num_references": len(c.references), **as_json(each[c.name])}
                for c in concepts
            },
            **provenance(),
        }
        tables = [overall_table(overall, self.profile, len(concepts)), concept_table(each, self.profile)]
        write_results(run_dir, "Concepts on a prompt list", metrics, tables, rows, grids)
        return metrics

    def _generate(
        self, generator: IdentifiedGenerator, concept: ScoredConcept, folder: Path
    ) -> dict[str, list[Image.Image]]:
        """Both arms, prompt by prompt, seed by seed."""
        images = {}
        for arm, word in _words(concept).items():
            requests = [Request(prompt.replace("{}", word), seed) for prompt, seed in self._places()]
            images[arm] = drawn(generator, requests, folder)
        return images

    def _places(self) -> list[tuple[str, int]]:
        return [(prompt, self.seed + seed) for prompt in self.prompts for seed in range(self.num_seeds)]

    def _score(self, concept: ScoredConcept, arm: str, images: list[Image.Image]) -> list[Row]:
        places = self._places()
        embedded = self.clip.encode_images(images)
        plain = [prompt.replace("{}", concept.class_noun) for prompt, _ in places]
        scores = {
            "clip_t": clip_t(embedded, self.clip.encode_texts(plain)),
            "clip_i": pair_mean(embedded, self.clip.encode_images(concept.references)),
            "dino": pair_mean(self.dino.encode_images(images), self.dino.encode_images(concept.references)),
        }
        return _rows(concept.name, arm, places, scores)

    def _ceiling(self, concept: ScoredConcept) -> list[Row]:
        """References against each other; they answer no prompt, so CLIP-T has no ceiling."""
        places = [("", index) for index in range(len(concept.references))]
        encoders = {"clip_i": self.clip, "dino": self.dino}
        scores = {key: within_set(encoder.encode_images(concept.references)) for key, encoder in encoders.items()}
        return _rows(concept.name, "ceiling", places, scores)

    def _grid(self, concept: ScoredConcept, images: dict[str, list[Image.Image]]) -> Image.Image:
        """One line per prompt: a reference, then control, then concept."""
        shown = min(self.num_seeds, SHOWN_SEEDS)
        cells, captions = [], []
        for index, prompt in enumerate(self.prompts):
            first = index * self.num_seeds
            cells.append(concept.references[index % len(concept.references)])
            captions.append(f"reference of {concept.name}")
            for arm, word in _words(concept).items():
                cells += images[arm][first : first + shown]
                captions += [prompt.replace("{}", word)] * shown
        return image_grid([ImageOps.contain(cell, (CELL, CELL)) for cell in cells], 1 + 2 * shown, captions)


def _words(concept: ScoredConcept) -> dict[str, str]:
    """What stands in the slot of a prompt, by arm."""
    return {"control": concept.class_noun, "concept": f"<{concept.name}>"}


def _rows(name: str, arm: str, places: list[tuple[str, int]], scores: dict[str, Tensor]) -> list[Row]:
    return [
        {"concept": name, "arm": arm, "prompt": prompt, "seed": seed}
        | {key: float(scores[key][index]) if key in scores else "" for key in SCORES}
        for index, (prompt, seed) in enumerate(places)
    ]


def _check(concepts: Sequence[ScoredConcept]) -> None:
    if not concepts:
        raise ValueError("there is no concept to score; add bank.NAME=PATH")
    for concept in concepts:
        if len(concept.references) < 2:
            raise ValueError(f"{concept.name} has one reference image; the ceiling compares at least two")
