"""Concepts on a list of prompts: scores between the plain class noun (control) and the references (ceiling)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from src.data.images import Picture
from src.data.mentions import mention_of
from src.data.ranges import Count, Number, Seed, Strength
from src.data.request import Generator, Request
from src.eval.concepts import Concept, check_references
from src.eval.grid import Grid
from src.eval.judge import Judge
from src.eval.profile import Profile
from src.eval.protocols import layout
from src.eval.protocols.base import Frame, Item, Protocol, scored_rows
from src.eval.protocols.concept_summary import (
    ALL,
    ANSWERED,
    ARMS,
    RENDERS,
    RIGHT,
    each_table,
    look_table,
    overall_table,
    rating_table,
    summarise,
)
from src.eval.results.results import Row, Table
from src.eval.scores.similarity import copies, diversity, within_set


@dataclass(frozen=True)
class ConceptImages:
    """What scores see of a concept: its images in one arm, prompt by prompt and seed by seed, as unit embeddings.

    Attributes:
        profile: The rules of the scores.
        clip: The images in CLIP's space, ``(N, D)``.
        dino: The images in DINO's space, ``(N, E)``.
        texts: The plain prompt of each image in CLIP's space, ``(N, D)``.
        clip_references: The references of the concept, ``(M, D)``.
        dino_references: The same in DINO's space, ``(M, E)``.
        num_seeds: Images per prompt.
    """

    profile: Profile
    clip: Tensor
    dino: Tensor
    texts: Tensor
    clip_references: Tensor
    dino_references: Tensor
    num_seeds: int


Score = Callable[[ConceptImages], Tensor | None]
"""One number per image, ``(N,)``; None where the score does not apply."""


def seed_diversity(of: ConceptImages) -> Tensor | None:
    """How different the seeds of a prompt are; one seed has no diversity."""
    return torch.cat([diversity(one) for one in of.dino.split(of.num_seeds)]) if of.num_seeds > 1 else None


SCORES: dict[str, Score] = {
    "clip_t": lambda of: of.profile.text_score(of.clip, of.texts),
    "clip_i": lambda of: of.profile.image_score(of.clip, of.clip_references),
    "dino": lambda of: of.profile.image_score(of.dino, of.dino_references),
}
"""What a sweep compares, by name. A new score is one more entry."""

GUARDS: dict[str, Score] = {
    "diversity": seed_diversity,
    "copied": lambda of: copies(of.dino, of.dino_references).above.double() if len(of.dino_references) > 1 else None,
}
"""What a high DINO may be bought with: samples of a prompt that are all alike, pictures that repeat a reference."""

RATINGS = ("concept_preservation", "prompt_following", ANSWERED)
"""What a vision-language model says of an image, and the share of its answers that are one of 0 to 4."""

SHOWN_SEEDS = 2
LEAD_IN = "a photo of "
FRONTIERS = [["clip_t", "dino"]]


class ConceptProtocol(Protocol[Concept]):
    """CLIP-T, CLIP-I and DINO of each concept over prompts and seeds, as in DreamBooth (arXiv 2208.12242).

    Beside them, in DINO's space: diversity between the seeds of a prompt, and the share of images that are nearer to a
    reference than any two references are to each other.

    CLIP-T is taken with the plain prompt, class noun in place of the concept. The control shares prompts and seeds
    with the concept, so that differences are paired.

    If the profile has a judge that knows a subject's look, ``right_...`` say which attributes it reads as the
    subject's, and whether all of them. Ceilings of these are the references, and true pictures of the prompts
    (renders).

    If the profile has a vision-language model, ``concept_preservation`` and ``prompt_following`` are its ratings from 0
    to 4, see ``src.eval.vision_judge``.

    A concept may bring prompts of its own, and a category: then there is a table of categories, too.

    Args:
        prompts: Templates with one ``{}``, such as ``a {} on the grass``, for concepts without prompts of their own.
        num_seeds: Images per prompt and concept.
        profile: Encoders and scale of the scores; its name stands with every number.
        images_dir: Where the images go; what it holds is not drawn again.
        seed: Seeds the first image of each prompt, and the bootstrap.
        lead_in: How often ``a photo of`` is said before each prompt: it moves the concept back and asks for nothing
            else, so CLIP-T is taken without it.
        ceiling: Whether references are compared with each other, for which a concept needs two; without it there is no
            gap, and no alarm for copies of the one reference.
        strength: How strongly each concept is meant, ``<rex:0.7>``.

    Raises:
        ValueError: If a template has not exactly one slot, or the profile asks for another text or other pairs.
    """

    name, title = "concept", "Concepts on a prompt list"
    scored_by, grouped_by, rated = "concept", ("prompt", "concept", "category"), True
    settings = ("prompts", "num_seeds", "lead_in", "strength")

    def __init__(
        self,
        prompts: Sequence[str],
        num_seeds: Count,
        profile: Profile,
        images_dir: str,
        seed: Seed = 0,
        lead_in: Number = 0,
        ceiling: bool = True,
        strength: Strength = 1.0,
    ) -> None:
        super().__init__(profile, images_dir, seed)
        profile.require(["class_noun"], ["all"])
        for prompt in prompts:
            if prompt.count("{}") != 1:
                raise ValueError(f"the prompt {prompt!r} needs one {{}}, where the concept stands: 'a {{}} at night'")
        if num_seeds < 1:
            raise ValueError(f"need at least one seed, got {num_seeds}")
        self.prompts, self.num_seeds, self.lead_in, self.ceiling = list(prompts), num_seeds, lead_in, ceiling
        self.strength = strength

    @property
    def scores(self) -> tuple[str, ...]:
        """What the judges say only if there are some."""
        return (*SCORES, *self._ratings, *self._read)

    @property
    def _ratings(self) -> tuple[str, ...]:
        return RATINGS if self.profile.vlm is not None else ()

    @property
    def _columns(self) -> tuple[str, ...]:
        return (*SCORES, *GUARDS, *self._ratings, *self._read)

    @property
    def _read(self) -> tuple[str, ...]:
        judge = self.profile.judge
        return () if judge is None else (*(f"{RIGHT}{name}" for name in judge.attributes), ALL)

    def items(self, concepts: Sequence[Concept]) -> list[Item[Concept]]:
        """Concept by concept, both arms, prompt by prompt, seed by seed."""
        return [
            Item(
                Request(LEAD_IN * self.lead_in + prompt.replace("{}", word), seed),
                _place(concept) | {"arm": arm, "prompt": prompt, "seed": seed},
                concept,
            )
            for concept in concepts
            for arm, word in (("control", concept.class_noun), ("concept", mention_of(concept.name, self.strength)))
            for prompt in self.prompts_of(concept)
            for seed in range(self.seed, self.seed + self.num_seeds)
        ]

    def prompts_of(self, concept: Concept) -> Sequence[str]:
        """The concept's own templates, or those for all."""
        return concept.prompts or self.prompts

    def check(self, concepts: Sequence[Concept]) -> None:
        """Refuse no concept at all, concepts without prompts or with one reference, and encoders without weights."""
        if not concepts:
            raise ValueError("there is no concept to score; add bank.NAME=PATH")
        for concept in concepts:
            if not self.prompts_of(concept):
                raise ValueError(
                    f"{concept.name} has no prompts; give some, such as protocol.prompts=['a {{}} at night']"
                )
            if bool(concept.category) != bool(concepts[0].category):
                raise ValueError(
                    f"{concept.name} and {concepts[0].name}: one has a category, the other none; score them apart"
                )
        if self.ceiling:
            check_references(concepts)
        super().check(concepts)

    def score(self, frame: Frame[Concept], generator: Generator) -> list[Row]:
        """Both arms of one concept, its renders if its look is known, then its references, which answer no prompt."""
        concept = frame.targets[0]
        references = [encoder.encode_images(concept.references) for encoder in (self.profile.clip, self.profile.dino)]
        parts = [frame.part(arm=arm) for arm in ARMS[:2]]
        rows = [row for part in parts for row in self._score(part.places, part.paths, concept, *references)]
        if judge := self._judge(concept):
            of = [
                image
                for prompt in self.prompts_of(concept)
                for image in judge.renders(prompt, [concept], self.num_seeds)
            ]
            renders = [{**place, "arm": RENDERS, "file": ""} for place in parts[0].places]
            rows += self._score(renders, of, concept, *references)
        if not self.ceiling:
            return rows
        places = [
            _place(concept) | {"arm": "ceiling", "prompt": "", "seed": index, "file": ""}
            for index in range(len(concept.references))
        ]
        ceiling = dict(zip(("clip_i", "dino"), map(within_set, references), strict=True))
        ceiling |= self._right(concept.references, [""] * len(places), concept)
        return rows + scored_rows(places, ceiling, self._columns)

    def _score(
        self,
        places: Sequence[Row],
        pictures: Sequence[Picture],
        concept: Concept,
        clip_references: Tensor,
        dino_references: Tensor,
    ) -> list[Row]:
        clip, prompts = self.profile.clip, [row["prompt"] for row in places]
        plain = [prompt.replace("{}", concept.class_noun) for prompt in prompts]
        embedded = ConceptImages(
            self.profile,
            clip.encode_images(pictures),
            self.profile.dino.encode_images(pictures),
            clip.encode_texts(plain),
            clip_references,
            dino_references,
            self.num_seeds,
        )
        found = {name: score(embedded) for name, score in {**SCORES, **GUARDS}.items()}
        found |= self._rate(pictures, plain, concept) | self._right(pictures, prompts, concept)
        return scored_rows(places, found, self._columns)

    def _rate(self, pictures: Sequence[Picture], plain: Sequence[str], concept: Concept) -> dict[str, Tensor]:
        """What the vision-language model says, by column, ``(N,)``."""
        if self.profile.vlm is None:
            return {}
        same = self.profile.vlm.preservation(pictures, concept.references, concept.class_noun)
        follows = self.profile.vlm.following(pictures, plain)
        return dict(zip(RATINGS, (same.scores, follows.scores, (same.answered + follows.answered) / 2), strict=True))

    def _right(self, pictures: Sequence[Picture], prompts: Sequence[str], concept: Concept) -> dict[str, Tensor]:
        """What is read as the concept's, by column, ``(N,)``; of several places, where most is."""
        if (judge := self._judge(concept)) is None:
            return {}
        asked = [(at, box) for at, prompt in enumerate(prompts) for box in layout.places(prompt)]
        read = judge.right([pictures[at] for at, _ in asked], [box for _, box in asked], [concept])[:, 0].double()
        best = torch.full((len(pictures), read.shape[1]), -1.0, dtype=torch.float64)
        for (at, _), right in zip(asked, read, strict=True):
            if right.sum() > best[at].sum():
                best[at] = right
        return dict(zip(self._read, [*best.unbind(1), best.prod(1)], strict=True))

    def _judge(self, concept: Concept) -> Judge | None:
        judge = self.profile.judge
        return judge if judge is not None and judge.knows([concept]) else None

    def summarise(self, frame: Frame[Concept]) -> dict[str, Any]:
        """Over all concepts, for each category, and for each concept."""
        scores = self._columns

        def each(column: str) -> dict[str, Any]:
            names = dict.fromkeys(row[column] for row in frame.rows)
            by_name = {name: [row for row in frame.rows if row[column] == name] for name in names}
            return {name: summarise(rows, self.seed, scores) for name, rows in by_name.items()}

        categories = {"categories": each("category")} if "category" in frame.rows[0] else {}
        return {"overall": summarise(frame.rows, self.seed, scores), **categories, "concepts": each("concept")}

    def metrics(self, frame: Frame[Concept]) -> dict[str, Any]:
        """All summaries, and what each concept is."""
        concepts = {
            concept.name: {"class_noun": concept.class_noun, "num_references": len(concept.references)}
            | ({"prompts": list(concept.prompts)} if concept.prompts else {})
            for concept in frame.targets
        }
        return frame.summary | {
            "concepts": {name: known | frame.summary["concepts"][name] for name, known in concepts.items()}
        }

    def compared(self, frame: Frame[Concept]) -> dict[str, Any]:
        """The images of the concept, over prompts and concepts."""
        factors = {"rows": {"arm": "concept"}, "factors": ["prompt", "concept"]}
        judged = [name for name in self._read if all(row[name] != "" for row in frame.rows)]
        return {
            **factors,
            "scores": [*SCORES, *self._ratings[:2], *judged],
            "harmonic": ["clip_t", "dino"],
            "frontiers": FRONTIERS,
        }

    def tables(self, frame: Frame[Concept]) -> list[Table]:
        """All concepts together, then one line for each category and each concept."""
        overall, each, profile = frame.summary["overall"], frame.summary["concepts"], self.profile.name
        tables = [overall_table(overall, profile, len(each), (*SCORES, *GUARDS))]
        if categories := frame.summary.get("categories"):
            tables.append(each_table("category", categories, profile))
        tables.append(each_table("concept", each, profile))
        if self._ratings:
            tables.append(rating_table({**frame.summary.get("categories", {}), "all": overall}, RATINGS, profile))
        return [*tables, look_table(overall, profile)] if ALL in overall["concept"] else tables

    def grids(self, frame: Frame[Concept]) -> dict[str, Grid]:
        """One picture per concept."""
        return {f"grid_{part.targets[0].name}": self._grid(part) for part in frame.parts("concept")}

    def _grid(self, frame: Frame[Concept]) -> Grid:
        """One line per prompt: a reference, then control, then concept."""
        shown, concept = min(self.num_seeds, SHOWN_SEEDS), frame.targets[0]
        cells: list[Picture] = []
        captions = []
        for index, prompt in enumerate(self.prompts_of(concept)):
            cells.append(concept.references[index % len(concept.references)])
            captions.append(f"reference of {concept.name}")
            for arm in ARMS[:2]:
                part = frame.part(arm=arm, prompt=prompt)
                cells += part.paths[:shown]
                captions += [item.request.prompt for item in part.items[:shown]]
        return self.grid(cells, 1 + 2 * shown, captions)


def _place(concept: Concept) -> Row:
    """How a line starts."""
    return {"concept": concept.name} | ({"category": concept.category} if concept.category else {})
