"""Several concepts in one image: is each itself, in its own place, and is the prompt kept?"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from src.data.images import Picture, as_image
from src.data.ranges import Count, Seed
from src.data.request import Generator, Request
from src.eval.concepts import Concept, check_references
from src.eval.grid import Grid
from src.eval.profile import Profile
from src.eval.protocols.base import Frame, Item, Protocol, scored_rows
from src.eval.protocols.layout import Box, columns, crop, squares
from src.eval.results.results import Row, Table
from src.eval.scores.outcomes import OUTCOMES, as_scores, found_by_look, halfway, outcomes
from src.eval.scores.similarity import pair_mean, within_set
from src.eval.statistics.bootstrap import bootstrap_mean

ARMS = ("control", "concept")
LOOK = "look_"
BY_LOOK = tuple(f"{LOOK}{name}" for name in OUTCOMES)
SHOWN_SEEDS = 4

Combination = tuple[Concept, ...]


class MultiConceptProtocol(Protocol[Combination]):
    """Identity and text of several concepts in one image.

    A prompt with N slots is drawn with combinations of N concepts: with M concepts there are M of them, each a run of N
    neighbours in the given order, so that every concept stands equally often in every slot. The subject of slot i is
    looked for in the i-th of N equal columns, so prompts have to name their subjects from left to right. DINO sees
    ``squares`` of a column's width and the nearest one counts: a whole column is mostly what is above and below.

    With ``num_concepts`` each prompt has one slot, in which that many concepts stand side by side, see ``listed``. Then
    images of other numbers can be held against each other: with the same first concept, in the same prompt and seed.

    ``dino`` is the mean, over concepts, of a column's DINO to its own subject's references. Outcomes are those of the
    pairs: as asked, swapped, mixed, omitted (``src.eval.scores.outcomes``), by DINO and, if the profile has a judge
    that knows the looks, by ground truth. Control: the same prompts and seeds with plain class nouns.

    Args:
        prompts: Templates with two or more slots ``{}``; with ``num_concepts``, with one.
        num_seeds: Images of each prompt and combination.
        profile: Its CLIP gives CLIP-T on the whole image, its DINO identity on the columns.
        images_dir: Where the images go; what it holds is not drawn again.
        seed: Seeds the first image of each prompt, and the bootstrap.
        num_concepts: How many concepts stand in the one slot of each prompt; None where a prompt's slots say it.

    Raises:
        ValueError: If a template has fewer than two slots, or with ``num_concepts`` not one, or the profile asks for
            another text or other pairs.
    """

    name, title = "multi_concept", "Several concepts in one image"
    scored_by, grouped_by, settings = "combination", ("number",), ("prompts", "num_seeds", "num_concepts")

    def __init__(
        self,
        prompts: Sequence[str],
        num_seeds: Count,
        profile: Profile,
        images_dir: str,
        seed: Seed = 0,
        num_concepts: Count | None = None,
    ) -> None:
        super().__init__(profile, images_dir, seed)
        profile.require(["class_noun"], ["all"])
        for prompt in prompts:
            slots = prompt.count("{}")
            if num_concepts is None and slots < 2:
                raise ValueError(f"the prompt {prompt!r} has {slots} slots {{}}; give two or more")
            if num_concepts is not None and slots != 1:
                raise ValueError(
                    f"the prompt {prompt!r} has {slots} slots {{}}; with protocol.num_concepts give one, in which all "
                    "concepts will stand"
                )
        if not prompts:
            raise ValueError("protocol.prompts is empty; give at least one prompt with two slots {}")
        self.prompts, self.num_seeds, self.num_concepts = list(prompts), num_seeds, num_concepts
        self.templates = {
            prompt: prompt if num_concepts is None else listed(prompt, num_concepts) for prompt in prompts
        }

    @property
    def scores(self) -> tuple[str, ...]:
        """The judge's outcomes only if there is one."""
        judged = () if self.profile.judge is None else BY_LOOK
        return ("clip_t", "dino", *OUTCOMES, *judged)

    @property
    def numbers(self) -> list[int]:
        """How many concepts prompts ask for, ascending."""
        return sorted({template.count("{}") for template in self.templates.values()})

    def items(self, concepts: Sequence[Concept]) -> list[Item[Combination]]:
        """Number by number, combination by combination, both arms, prompt by prompt, seed by seed."""
        return [
            Item(
                Request(filled(template, chosen, number if arm == "concept" else 0), seed),
                {
                    "number": str(number),
                    "combination": "_".join(one.name for one in chosen),
                    "first": chosen[0].name,
                    "arm": arm,
                    "prompt": prompt,
                    "seed": seed,
                },
                chosen,
            )
            for number in self.numbers
            for chosen in combinations(concepts, number)
            for arm in ARMS
            for prompt, template in self.templates.items()
            if template.count("{}") == number
            for seed in range(self.seed, self.seed + self.num_seeds)
        ]

    def check(self, concepts: Sequence[Concept]) -> None:
        """Refuse fewer concepts than a prompt has slots, and concepts with one reference."""
        if len(concepts) < self.numbers[-1]:
            longest = next(one for one in self.templates.values() if one.count("{}") == self.numbers[-1])
            raise ValueError(
                f"the prompt {longest!r} asks for {self.numbers[-1]} concepts, but there are {len(concepts)}; add "
                "bank.NAME=PATH for each, or give other protocol.prompts"
            )
        check_references(concepts)
        super().check(concepts)

    def score(self, frame: Frame[Combination], generator: Generator) -> list[Row]:
        """Both arms of one combination."""
        chosen, clip = frame.targets[0], self.profile.clip
        regions = columns(len(chosen))
        references = [self.profile.dino.encode_images(concept.references) for concept in chosen]
        # Images, regions, subjects: (N, C, C).
        likeness = torch.stack([self._likeness(frame.paths, box, references) for box in regions], 1)
        own = likeness.diagonal(dim1=1, dim2=2)  # (N, C)
        plain = torch.tensor([item.row["arm"] == "control" for item in frame.items])
        ceiling = torch.stack([within_set(each).mean() for each in references])
        texts = clip.encode_texts([filled(self.templates[item.row["prompt"]], chosen, 0) for item in frame.items])
        scores = {
            "clip_t": self.profile.text_score(clip.encode_images(frame.paths), texts),
            "dino": own.mean(1),
            **as_scores(outcomes(halfway(likeness, own[plain].mean(0), ceiling))),
            **self._by_look(frame.paths, regions, chosen),
        }
        return scored_rows(frame.places, scores, self.scores)

    def _likeness(self, pictures: Sequence[Picture], column: Box, references: Sequence[Tensor]) -> Tensor:
        """Mean cosine of each picture's column to the references of each subject, in its nearest square, ``(N, C)``."""
        boxes = squares(column)
        embedded = self.profile.dino.encode_images([partial(_read_crop, one, box) for one in pictures for box in boxes])
        each = torch.stack([pair_mean(embedded, of) for of in references], 1)  # (N * squares, C)
        return each.unflatten(0, (len(pictures), len(boxes))).amax(1)

    def _by_look(self, pictures: Sequence[Picture], regions: Sequence[Box], chosen: Combination) -> dict[str, Tensor]:
        judge = self.profile.judge
        if judge is None or not judge.knows(chosen):
            return {}
        right = torch.stack([judge.right(pictures, [box] * len(pictures), chosen) for box in regions], 1)
        return as_scores(outcomes(*found_by_look(right, judge.telling(chosen))), LOOK)

    def summarise(self, frame: Frame[Combination]) -> dict[str, Any]:
        """By number of concepts, the intervals of each arm, clustered by prompt and combination."""
        return {
            number: {
                arm: self._intervals([row for row in frame.rows if (row["number"], row["arm"]) == (number, arm)])
                for arm in ARMS
            }
            for number in map(str, self.numbers)
        }

    def _intervals(self, rows: Sequence[Row]) -> dict[str, Any]:
        found = {}
        for score in self.scores:
            scored = [row for row in rows if row[score] != ""]
            groups = [[row[factor] for row in scored] for factor in ("prompt", "combination")]
            if scored:
                found[score] = bootstrap_mean([row[score] for row in scored], groups, self.seed)
        return found

    def metrics(self, frame: Frame[Combination]) -> dict[str, Any]:
        """The intervals by number of concepts and arm."""
        return {"numbers": frame.summary}

    def compared(self, frame: Frame[Combination]) -> dict[str, Any]:
        """The images of the concepts, over prompts and combinations of all numbers."""
        scores = [score for score in self.scores if all(row[score] != "" for row in frame.rows)]
        places = {"factors": ["prompt", "combination"], "by": "number"}
        if self.num_concepts is not None:
            places = {"factors": ["prompt", "first"]}
        factors = {"rows": {"arm": "concept"}, "scores": scores, **places}
        return {**factors, "harmonic": ["clip_t", "dino"], "frontiers": [["dino", "clip_t"], ["as_asked", "clip_t"]]}

    def tables(self, frame: Frame[Combination]) -> list[Table]:
        """One line per number of concepts and arm."""
        lines = [
            [number, arm, *(str(found.get(score, "")) for score in self.scores)]
            for number, arms in frame.summary.items()
            for arm, found in arms.items()
        ]
        title = f"Several concepts in one image, mean [95% interval], profile {self.profile.name}"
        return [Table(title, ["concepts", "", *self.scores], lines)]

    def grids(self, frame: Frame[Combination]) -> dict[str, Grid]:
        """One picture per number and arm: a line for each combination, with its first prompt and seeds."""
        numbers = list(map(str, self.numbers))
        parts = {(number, arm): frame.part(number=number, arm=arm) for number in numbers for arm in ARMS}
        return {f"grid_{number}_{arm}": self._grid(part) for (number, arm), part in parts.items()}

    def _grid(self, frame: Frame[Combination]) -> Grid:
        shown = min(self.num_seeds, SHOWN_SEEDS)
        lines = frame.parts("combination")
        return self.grid([path for line in lines for path in line.paths[:shown]], shown)


def combinations(concepts: Sequence[Concept], number: int) -> list[Combination]:
    """Runs of ``number`` neighbours of a circle of concepts, one from each start."""
    return [tuple((*concepts, *concepts)[start : start + number]) for start in range(len(concepts))]


def listed(prompt: str, number: int) -> str:
    """Give the slot of a prompt ``number`` slots, from left to right as the world's captions name several objects."""
    if number < 3:
        return prompt.replace("{}", ("{}", "{} left of a {}")[number - 1])
    return prompt.replace("{}", "{}" + ", a {}" * (number - 2) + " and a {}")


def filled(prompt: str, chosen: Combination, number: int) -> str:
    """Fill the slots of a prompt: the first ``number`` of them with mentions, the others with plain class nouns."""
    for at, concept in enumerate(chosen):
        prompt = prompt.replace("{}", f"<{concept.name}>" if at < number else concept.class_noun, 1)
    return prompt


def _read_crop(picture: Picture, box: Box) -> Image.Image:
    return crop(as_image(picture), box)
