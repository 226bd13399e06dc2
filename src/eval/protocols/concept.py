"""Concepts on a list of prompts: scores between the plain class noun (control) and the references (ceiling)."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from src.data.images import Picture
from src.data.ranges import Count, Number, Seed
from src.data.request import Generator, Request
from src.eval.concepts import Concept, check_references
from src.eval.judge import Judge
from src.eval.profile import Profile
from src.eval.protocols import layout
from src.eval.protocols.base import Frame, Item, Protocol, scored_rows
from src.eval.results.results import Row, Table
from src.eval.scores.similarity import copies, diversity, within_set
from src.eval.statistics.bootstrap import bootstrap_mean, bootstrap_ratio


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
    "copied": lambda of: copies(of.dino, of.dino_references).above.double(),
}
"""What a high DINO may be bought with: samples of a prompt that are all alike, pictures that repeat a reference."""

ARMS = ("control", "concept", "ceiling")
RENDERS = "renders"
RIGHT, ALL = "right_", "right_all"
"""Before the names of what a judge reads; all of it."""
SHOWN_SEEDS = 2
LEAD_IN = "a photo of "
FRONTIERS = [["clip_t", "dino"]]


def summarise(rows: Sequence[Row], seed: int) -> dict[str, Any]:
    """Intervals per arm and score, the share of the DINO gap closed and the relative change of CLIP-T.

    Images are clustered by prompt and, where there are several, by concept, both crossed; references by concept. In the
    gap the ceiling is taken as known.
    """
    by_arm = {arm: [row for row in rows if row["arm"] == arm] for arm in (*ARMS, RENDERS)}
    result: dict[str, Any] = {}
    scores = [name for name in rows[0] if name in {**SCORES, **GUARDS} or name.startswith(RIGHT)]
    for arm, members in by_arm.items():
        factors = ("concept",) if arm == "ceiling" else ("prompt", "concept")
        for score in scores:
            scored = [row for row in members if row[score] != ""]
            groups = [[row[factor] for row in scored] for factor in factors]
            if scored:
                result.setdefault(arm, {})[score] = bootstrap_mean([row[score] for row in scored], groups, seed)
    control, concept = by_arm["control"], by_arm["concept"]
    groups = [[row[factor] for row in concept] for factor in ("prompt", "concept")]
    ceilings = {name: _mean(row["dino"] for row in by_arm["ceiling"] if row["concept"] == name) for name in groups[1]}
    gained = [ours["dino"] - theirs["dino"] for ours, theirs in zip(concept, control, strict=True)]
    gap = [ceilings[row["concept"]] - row["dino"] for row in control]
    result["dino_gap_closed"] = bootstrap_ratio(gained, gap, groups, seed)
    change = [ours["clip_t"] - theirs["clip_t"] for ours, theirs in zip(concept, control, strict=True)]
    result["clip_t_change"] = bootstrap_ratio(change, [row["clip_t"] for row in control], groups, seed)
    return result


def overall_table(summary: dict[str, Any], profile: str, number: int) -> Table:
    """Control, concept and ceiling over all concepts."""
    columns = (*SCORES, *GUARDS)
    arms = [arm for arm in (*ARMS, RENDERS) if arm in summary]
    rows = [[arm, *(str(summary[arm].get(score, "")) for score in columns)] for arm in arms]
    shares = {"DINO gap closed": ("dino", "dino_gap_closed"), "CLIP-T change": ("clip_t", "clip_t_change")}
    for label, (at, key) in shares.items():
        rows.append([label, *(str(summary[key]) if score == at else "" for score in columns)])
    title = f"{number} concept{'s' if number > 1 else ''}, mean [95% interval], profile {profile}"
    return Table(title, ["", *columns], rows)


def look_table(summary: dict[str, Any], profile: str) -> Table:
    """Attributes that the judge reads as those of the subject: control, concept, references and renders."""
    columns = [score for score in summary["concept"] if score.startswith(RIGHT)]
    arms = [arm for arm in (*ARMS, RENDERS) if arm in summary]
    rows = [[arm, *(str(summary[arm].get(score, "")) for score in columns)] for arm in arms]
    title = f"Share of images whose attributes are read as the subject's, [95% interval], profile {profile}"
    return Table(title, ["", *(score.removeprefix(RIGHT).replace("_", " ") for score in columns)], rows)


def concept_table(each: dict[str, dict[str, Any]], profile: str) -> Table:
    """One line per concept."""
    columns = ["concept", *(f"dino {arm}" for arm in ARMS), "gap closed", "clip_t control", "clip_t concept"]
    rows = [
        [
            name,
            *(f"{summary[arm]['dino'].mean:.3f}" for arm in ARMS),
            str(summary["dino_gap_closed"]),
            *(f"{summary[arm]['clip_t'].mean:.3f}" for arm in ARMS[:2]),
        ]
        for name, summary in each.items()
    ]
    return Table(f"Each concept, profile {profile}", columns, rows)


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)


class ConceptProtocol(Protocol[Concept]):
    """CLIP-T, CLIP-I and DINO of each concept over prompts and seeds, as in DreamBooth (arXiv 2208.12242).

    Beside them, in DINO's space: diversity between the seeds of a prompt, and the share of images that are nearer to a
    reference than any two references are to each other.

    CLIP-T is taken with the plain prompt, class noun in place of the concept. The control shares prompts and seeds
    with the concept, so that differences are paired.

    If the profile has a judge that knows a subject's look, ``right_...`` say which attributes it reads as the
    subject's, and whether all of them. Ceilings of these are the references, and true pictures of the prompts
    (renders).

    Args:
        prompts: Templates with one ``{}``, such as ``a {} on the grass``.
        num_seeds: Images per prompt and concept.
        profile: Encoders and scale of the scores; its name stands with every number.
        images_dir: Where the images go; what it holds is not drawn again.
        seed: Seeds the first image of each prompt, and the bootstrap.
        lead_in: How often ``a photo of`` is said before each prompt: it moves the concept back and asks for nothing
            else, so CLIP-T is taken without it.

    Raises:
        ValueError: If a template has not exactly one slot, there is nothing to score, or the profile asks for another
            text or other pairs.
    """

    name, title = "concept", "Concepts on a prompt list"
    cell, scored_by, grouped_by = 160, "concept", ("prompt", "concept")
    settings = ("prompts", "num_seeds", "lead_in")

    def __init__(
        self,
        prompts: Sequence[str],
        num_seeds: Count,
        profile: Profile,
        images_dir: str,
        seed: Seed = 0,
        lead_in: Number = 0,
    ) -> None:
        super().__init__(profile, images_dir, seed)
        profile.require(["class_noun"], ["all"])
        for prompt in prompts:
            if prompt.count("{}") != 1:
                raise ValueError(f"the prompt {prompt!r} needs one {{}}, where the concept stands: 'a {{}} at night'")
        if not prompts or num_seeds < 1:
            raise ValueError(f"need at least one prompt and one seed, got {len(prompts)} and {num_seeds}")
        self.prompts, self.num_seeds, self.lead_in = list(prompts), num_seeds, lead_in

    @property
    def scores(self) -> tuple[str, ...]:
        """What the judge reads only if there is one."""
        return (*SCORES, *self._read)

    @property
    def _read(self) -> tuple[str, ...]:
        judge = self.profile.judge
        return () if judge is None else (*(f"{RIGHT}{name}" for name in judge.attributes), ALL)

    def items(self, concepts: Sequence[Concept]) -> list[Item[Concept]]:
        """Concept by concept, both arms, prompt by prompt, seed by seed."""
        return [
            Item(
                Request(LEAD_IN * self.lead_in + prompt.replace("{}", word), seed),
                {"concept": concept.name, "arm": arm, "prompt": prompt, "seed": seed},
                concept,
            )
            for concept in concepts
            for arm, word in (("control", concept.class_noun), ("concept", f"<{concept.name}>"))
            for prompt in self.prompts
            for seed in range(self.seed, self.seed + self.num_seeds)
        ]

    def check(self, concepts: Sequence[Concept]) -> None:
        """Refuse no concept at all, concepts with one reference, and encoders without weights."""
        if not concepts:
            raise ValueError("there is no concept to score; add bank.NAME=PATH")
        check_references(concepts)
        super().check(concepts)

    def score(self, frame: Frame[Concept], generator: Generator) -> list[Row]:
        """Both arms of one concept, its renders if its look is known, then its references, which answer no prompt."""
        concept = frame.targets[0]
        references = [encoder.encode_images(concept.references) for encoder in (self.profile.clip, self.profile.dino)]
        parts = [frame.part(arm=arm) for arm in ARMS[:2]]
        rows = [row for part in parts for row in self._score(part.places, part.paths, concept, *references)]
        if judge := self._judge(concept):
            of = [image for prompt in self.prompts for image in judge.renders(prompt, [concept], self.num_seeds)]
            renders = [{**place, "arm": RENDERS, "file": ""} for place in parts[0].places]
            rows += self._score(renders, of, concept, *references)
        places = [
            {"concept": concept.name, "arm": "ceiling", "prompt": "", "seed": index, "file": ""}
            for index in range(len(concept.references))
        ]
        ceiling = dict(zip(("clip_i", "dino"), map(within_set, references), strict=True))
        ceiling |= self._right(concept.references, [""] * len(places), concept)
        return rows + scored_rows(places, ceiling, (*SCORES, *GUARDS, *self._read))

    def _score(
        self,
        places: Sequence[Row],
        pictures: Sequence[Picture],
        concept: Concept,
        clip_references: Tensor,
        dino_references: Tensor,
    ) -> list[Row]:
        clip, prompts = self.profile.clip, [row["prompt"] for row in places]
        embedded = ConceptImages(
            self.profile,
            clip.encode_images(pictures),
            self.profile.dino.encode_images(pictures),
            clip.encode_texts([prompt.replace("{}", concept.class_noun) for prompt in prompts]),
            clip_references,
            dino_references,
            self.num_seeds,
        )
        found = {name: score(embedded) for name, score in {**SCORES, **GUARDS}.items()}
        found |= self._right(pictures, prompts, concept)
        return scored_rows(places, found, (*SCORES, *GUARDS, *self._read))

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
        """Over all concepts, and for each."""
        names = dict.fromkeys(row["concept"] for row in frame.rows)
        each = {name: [row for row in frame.rows if row["concept"] == name] for name in names}
        return {
            "overall": summarise(frame.rows, self.seed),
            "concepts": {name: summarise(rows, self.seed) for name, rows in each.items()},
        }

    def metrics(self, frame: Frame[Concept]) -> dict[str, Any]:
        """Both summaries, and what each concept is."""
        concepts = {
            concept.name: {"class_noun": concept.class_noun, "num_references": len(concept.references)}
            for concept in frame.targets
        }
        each = {name: known | frame.summary["concepts"][name] for name, known in concepts.items()}
        return {"overall": frame.summary["overall"], "concepts": each}

    def compared(self, frame: Frame[Concept]) -> dict[str, Any]:
        """The images of the concept, over prompts and concepts."""
        factors = {"rows": {"arm": "concept"}, "factors": ["prompt", "concept"]}
        judged = [name for name in self._read if all(row[name] != "" for row in frame.rows)]
        return {**factors, "scores": [*SCORES, *judged], "harmonic": ["clip_t", "dino"], "frontiers": FRONTIERS}

    def tables(self, frame: Frame[Concept]) -> list[Table]:
        """All concepts together, then one line for each."""
        overall, each, profile = frame.summary["overall"], frame.summary["concepts"], self.profile.name
        tables = [overall_table(overall, profile, len(each)), concept_table(each, profile)]
        return [*tables, look_table(overall, profile)] if ALL in overall["concept"] else tables

    def grids(self, frame: Frame[Concept]) -> dict[str, Image.Image]:
        """One picture per concept."""
        return {f"grid_{part.targets[0].name}": self._grid(part) for part in frame.parts("concept")}

    def _grid(self, frame: Frame[Concept]) -> Image.Image:
        """One line per prompt: a reference, then control, then concept."""
        shown, concept = min(self.num_seeds, SHOWN_SEEDS), frame.targets[0]
        cells: list[Picture] = []
        captions = []
        for index, prompt in enumerate(self.prompts):
            cells.append(concept.references[index % len(concept.references)])
            captions.append(f"reference of {concept.name}")
            for arm in ARMS[:2]:
                part = frame.part(arm=arm, prompt=prompt)
                cells += part.paths[:shown]
                captions += [item.request.prompt for item in part.items[:shown]]
        return self.grid(cells, 1 + 2 * shown, captions)
