"""Two concepts in one image: does each keep its own identity, or do they mix?"""

from collections.abc import Sequence
from functools import partial
from itertools import permutations
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from src.data.images import Picture, as_image
from src.data.layout import Layout
from src.data.ranges import Count, Seed
from src.data.request import Generator, Request
from src.eval.concepts import Concept, check_references
from src.eval.grid import Grid
from src.eval.judge import Judge
from src.eval.profile import Profile
from src.eval.protocols.base import Frame, Item, Protocol, scored_rows
from src.eval.protocols.layout import Box, crop, layout
from src.eval.results.results import Row, Table
from src.eval.scores.outcomes import OUTCOMES, as_scores, found_by_look, halfway, outcomes
from src.eval.scores.similarity import pair_mean, within_set
from src.eval.statistics.bootstrap import bootstrap_mean

MARGINS = ("first_margin", "second_margin")
ARMS = ("control", "concept")
RENDERS = "renders"
LOOK = "look_"
"""Of the judge's outcomes, before those of DINO's names."""
BY_LOOK = tuple(f"{LOOK}{name}" for name in OUTCOMES)
SHOWN_PROMPTS, SHOWN_SEEDS = 10, 4

Pair = tuple[Concept, Concept]


class PairProtocol(Protocol[Pair]):
    """Identity of two concepts in one image, on the halves that the prompt's relation assigns to them.

    The margin of a crop is its DINO to its own references minus that to the other's; an image's margin is the mean of
    its two. Control: the same prompts and seeds with plain class nouns. Ceiling: the references themselves.

    Beside it stand the shares of images as asked, swapped, mixed and omitted, see ``outcomes``. A crop shows a subject
    where it closes more than half of its DINO gap, see ``halfway``. If the profile has a judge that knows both looks,
    ``look_...`` are the same outcomes by ground truth, see ``found_by_look``, and true pictures of the prompts
    (renders) are the ceiling of all: what a crop hides counts as missing there, too.

    Args:
        prompts: Templates with ``{first}`` and ``{second}`` and one of ``LAYOUTS``.
        num_seeds: Images per prompt and ordered pair.
        profile: Its CLIP gives CLIP-T on the whole image, its DINO identity on the crops.
        images_dir: Where the images go; what it holds is not drawn again.
        seed: Seeds the first image of each prompt, and the bootstrap.
        with_layout: Whether the method is told the halves that the relation assigns.

    Raises:
        ValueError: If a template lacks a slot or a relation, or the profile asks for another text or other pairs.
    """

    name, title = "pairs", "Two concepts in one image"
    scored_by, settings = "pair", ("prompts", "num_seeds")

    def __init__(
        self,
        prompts: Sequence[str],
        num_seeds: Count,
        profile: Profile,
        images_dir: str,
        seed: Seed = 0,
        with_layout: bool = False,
    ) -> None:
        super().__init__(profile, images_dir, seed)
        profile.require(["class_noun"], ["all"])
        if not prompts or num_seeds < 1:
            raise ValueError(f"need at least one prompt and one seed, got {len(prompts)} and {num_seeds}")
        self.layouts = {prompt: layout(prompt) for prompt in prompts}
        self.prompts, self.num_seeds, self.with_layout = list(self.layouts), num_seeds, with_layout

    @property
    def scores(self) -> tuple[str, ...]:
        """The judge's outcomes only if there is one."""
        judged = () if self.profile.judge is None else BY_LOOK
        return ("identity_margin", "both_own", *OUTCOMES, *judged, "clip_t")

    def items(self, concepts: Sequence[Concept]) -> list[Item[Pair]]:
        """Pair by pair, both arms, prompt by prompt, seed by seed."""
        return [
            Item(
                Request(_filled(prompt, pair, arm), seed, layout=self._told(prompt, pair, arm)),
                {"pair": f"{pair[0].name}_{pair[1].name}", "arm": arm, "prompt": prompt, "seed": seed},
                pair,
            )
            for pair in permutations(concepts, 2)
            for arm in ARMS
            for prompt in self.prompts
            for seed in range(self.seed, self.seed + self.num_seeds)
        ]

    def _told(self, prompt: str, pair: Pair, arm: str) -> Layout:
        if arm == "control" or not self.with_layout:
            return ()
        return tuple(sorted(zip((one.name for one in pair), self.layouts[prompt], strict=True)))

    def check(self, concepts: Sequence[Concept]) -> None:
        """Refuse a single concept, concepts with one reference, and encoders without weights."""
        if len(concepts) < 2:
            raise ValueError(f"a pair needs two concepts, got {len(concepts)}; add bank.NAME=PATH for each")
        check_references(concepts)
        super().check(concepts)

    def score(self, frame: Frame[Pair], generator: Generator) -> list[Row]:
        """Both arms of one pair, then renders of its prompts if its looks are known."""
        pair, places, pictures = frame.targets[0], list[Row](), list[Picture]()
        for arm in ARMS:
            part = frame.part(arm=arm)
            places, pictures = [*places, *part.places], [*pictures, *part.paths]
        if judge := self._judge(pair):
            renders = {prompt: judge.renders(prompt, pair, self.num_seeds) for prompt in self.prompts}
            asked = places[: len(self.prompts) * self.num_seeds]
            places += [{**row, "arm": RENDERS, "file": ""} for row in asked]
            pictures += [image for of in renders.values() for image in of]
        return self._score(places, pictures, pair)

    def _score(self, places: list[Row], pictures: list[Picture], pair: Pair) -> list[Row]:
        clip, boxes = self.profile.clip, [self.layouts[row["prompt"]] for row in places]
        references = [self._embedded(concept) for concept in pair]
        # Images, regions, subjects: (N, 2, 2).
        likeness = torch.stack([self._likeness(pictures, [each[at] for each in boxes], references) for at in (0, 1)], 1)
        own = likeness.diagonal(dim1=1, dim2=2)
        margins = (own - likeness.flip(2).diagonal(dim1=1, dim2=2)).unbind(1)
        plain = torch.tensor([row["arm"] == "control" for row in places])
        ceiling = torch.stack([within_set(each).mean() for each in references])
        found = halfway(likeness, own[plain].mean(0), ceiling)
        texts = clip.encode_texts([_filled(row["prompt"], pair, "control") for row in places])
        scores = {
            **dict(zip(MARGINS, margins, strict=True)),
            "identity_margin": torch.stack(margins).mean(0),
            "both_own": (torch.stack(margins) > 0).all(0),
            **as_scores(outcomes(found)),
            **self._by_look(pictures, boxes, pair),
            "clip_t": self.profile.text_score(clip.encode_images(pictures), texts),
        }
        return scored_rows(places, scores, dict.fromkeys([*MARGINS, *self.scores]))

    def _likeness(self, pictures: Sequence[Picture], boxes: Sequence[Box], references: Sequence[Tensor]) -> Tensor:
        """Mean cosine of each picture's crop to the references of each subject, ``(N, 2)``."""
        crops = [partial(_read_crop, picture, box) for picture, box in zip(pictures, boxes, strict=True)]
        embedded = self.profile.dino.encode_images(crops)
        return torch.stack([pair_mean(embedded, each) for each in references], 1)

    def _by_look(self, pictures: Sequence[Picture], boxes: Sequence[tuple[Box, Box]], pair: Pair) -> dict[str, Tensor]:
        if (judge := self._judge(pair)) is None:
            return {}
        right = torch.stack([judge.right(pictures, [each[at] for each in boxes], pair) for at in (0, 1)], 1)
        return as_scores(outcomes(*found_by_look(right, judge.telling(pair))), LOOK)

    def _judge(self, pair: Pair) -> Judge | None:
        judge = self.profile.judge
        return judge if judge is not None and judge.knows(pair) else None

    def summarise(self, frame: Frame[Pair]) -> dict[str, Any]:
        """The intervals of each arm, clustered by prompt and pair, and the margin of the references."""
        references = {concept.name: self._embedded(concept) for pair in frame.targets for concept in pair}
        arms = {arm: [row for row in frame.rows if row["arm"] == arm] for arm in (*ARMS, RENDERS)}
        return {arm: self._intervals(rows) for arm, rows in arms.items() if rows} | {
            "ceiling": {"identity_margin": _ceiling(references)}
        }

    def _intervals(self, rows: Sequence[Row]) -> dict[str, Any]:
        found = {}
        for score in self.scores:
            scored = [row for row in rows if row[score] != ""]
            groups = [[row[factor] for row in scored] for factor in ("prompt", "pair")]
            if scored:
                found[score] = bootstrap_mean([row[score] for row in scored], groups, self.seed)
        return found

    def compared(self, frame: Frame[Pair]) -> dict[str, Any]:
        """The images of the concepts, over prompts and pairs."""
        scores = [score for score in self.scores if all(row[score] != "" for row in frame.rows)]
        factors = {"rows": {"arm": "concept"}, "factors": ["prompt", "pair"], "scores": scores}
        return {**factors, "frontiers": [["identity_margin", "clip_t"], ["as_asked", "clip_t"]]}

    def tables(self, frame: Frame[Pair]) -> list[Table]:
        """One line per arm."""
        arms = [arm for arm in (*ARMS, RENDERS) if arm in frame.summary]
        lines = [[arm, *(str(frame.summary[arm].get(score, "")) for score in self.scores)] for arm in arms]
        ceiling = f"{frame.summary['ceiling']['identity_margin']:.3f}"
        title = f"Two concepts in one image, mean [95% interval], profile {self.profile.name}"
        return [Table(title, ["", *self.scores], [*lines, ["ceiling", ceiling, *[""] * (len(self.scores) - 1)]])]

    def grids(self, frame: Frame[Pair]) -> dict[str, Grid]:
        """One picture per pair and arm: a line for each of the first prompts, with its first seeds."""
        return {
            f"grid_{pair.items[0].row['pair']}_{arm}": self._grid(pair.part(arm=arm))
            for pair in frame.parts("pair")
            for arm in ARMS
        }

    def _grid(self, frame: Frame[Pair]) -> Grid:
        shown = min(self.num_seeds, SHOWN_SEEDS)
        parts = (frame.part(prompt=prompt) for prompt in self.prompts[:SHOWN_PROMPTS])
        return self.grid([path for part in parts for path in part.paths[:shown]], shown)

    def _embedded(self, concept: Concept) -> Tensor:
        return self.profile.dino.encode_images(concept.references)


def _filled(prompt: str, pair: Pair, arm: str) -> str:
    first, second = (one.class_noun if arm == "control" else f"<{one.name}>" for one in pair)
    return prompt.replace("{first}", first).replace("{second}", second)


def _read_crop(picture: Picture, box: Box) -> Image.Image:
    return crop(as_image(picture), box)


def _ceiling(references: dict[str, Tensor]) -> float:
    """Mean margin of the reference images, which need no prompt and stand alone in theirs."""
    margins = [
        within_set(references[a]).mean() - pair_mean(references[a], references[b]).mean()
        for a, b in permutations(references, 2)
    ]
    return float(torch.stack(margins).mean())
