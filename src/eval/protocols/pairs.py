"""Two concepts in one image: does each keep its own identity, or do they mix?"""

from collections.abc import Sequence
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from src.data.images import load_image
from src.data.layout import Layout
from src.data.ranges import Count, Seed
from src.data.request import Generator, Request
from src.eval.concepts import Concept, check_references
from src.eval.profile import Profile
from src.eval.protocols.base import Frame, Item, Protocol, scored_rows
from src.eval.protocols.layout import crop, layout
from src.eval.results.results import Row, Table
from src.eval.scores.similarity import pair_mean, within_set
from src.eval.statistics.bootstrap import bootstrap_mean

MARGINS = ("first_margin", "second_margin")
ARMS = ("control", "concept")
SHOWN_PROMPTS, SHOWN_SEEDS = 10, 4

Pair = tuple[Concept, Concept]


class PairProtocol(Protocol[Pair]):
    """Identity of two concepts in one image, on the halves that the prompt's relation assigns to them.

    The margin of a crop is its DINO to its own references minus that to the other's; an image's margin is the mean of
    its two. Control: the same prompts and seeds with plain class nouns. Ceiling: the references themselves.

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
    cell, scored_by, settings = 160, "pair", ("prompts", "num_seeds")
    scores = ("identity_margin", "both_own", "clip_t")

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
        """Both arms of one pair."""
        first, second = (self._embedded(concept) for concept in frame.targets[0])
        return [row for arm in ARMS for row in self._score(frame.part(arm=arm), first, second)]

    def _score(self, frame: Frame[Pair], first: Tensor, second: Tensor) -> list[Row]:
        clip = self.profile.clip
        layouts = [self.layouts[item.row["prompt"]] for item in frame.items]
        # The crops of the first concepts, then those of the second, (N, E) each.
        ours, theirs = (
            self.profile.dino.encode_images(
                [partial(_read_crop, path, boxes[at]) for path, boxes in zip(frame.paths, layouts, strict=True)]
            )
            for at in (0, 1)
        )
        margins = torch.stack(
            [pair_mean(ours, first) - pair_mean(ours, second), pair_mean(theirs, second) - pair_mean(theirs, first)]
        )
        plain = [_filled(item.row["prompt"], item.target, "control") for item in frame.items]
        scores = {
            **dict(zip(MARGINS, margins, strict=True)),
            "identity_margin": margins.mean(0),
            "both_own": (margins > 0).all(0),
            "clip_t": self.profile.text_score(clip.encode_images(frame.paths), clip.encode_texts(plain)),
        }
        rows = scored_rows([item.row for item in frame.items], scores, scores)
        return [row | {"file": path.name} for row, path in zip(rows, frame.paths, strict=True)]

    def summarise(self, frame: Frame[Pair]) -> dict[str, Any]:
        """The intervals of each arm, clustered by prompt and pair, and the margin of the references."""
        references = {concept.name: self._embedded(concept) for pair in frame.targets for concept in pair}
        arms = {arm: [row for row in frame.rows if row["arm"] == arm] for arm in ARMS}
        return {arm: self._intervals(rows) for arm, rows in arms.items()} | {
            "ceiling": {"identity_margin": _ceiling(references)}
        }

    def _intervals(self, rows: Sequence[Row]) -> dict[str, Any]:
        groups = [[row[factor] for row in rows] for factor in ("prompt", "pair")]
        return {score: bootstrap_mean([row[score] for row in rows], groups, self.seed) for score in self.scores}

    def compared(self, frame: Frame[Pair]) -> dict[str, Any]:
        """The images of the concepts, over prompts and pairs."""
        return {"rows": {"arm": "concept"}, "factors": ["prompt", "pair"], "scores": list(self.scores)}

    def tables(self, frame: Frame[Pair]) -> list[Table]:
        """One line per arm."""
        lines = [[arm, *(str(frame.summary[arm][score]) for score in self.scores)] for arm in ARMS]
        ceiling = f"{frame.summary['ceiling']['identity_margin']:.3f}"
        title = f"Two concepts in one image, mean [95% interval], profile {self.profile.name}"
        return [Table(title, ["", *self.scores], [*lines, ["ceiling", ceiling, "", ""]])]

    def grids(self, frame: Frame[Pair]) -> dict[str, Image.Image]:
        """One picture per pair and arm: a line for each of the first prompts, with its first seeds."""
        return {
            f"grid_{pair.items[0].row['pair']}_{arm}": self._grid(pair.part(arm=arm))
            for pair in frame.parts("pair")
            for arm in ARMS
        }

    def _grid(self, frame: Frame[Pair]) -> Image.Image:
        shown = min(self.num_seeds, SHOWN_SEEDS)
        parts = (frame.part(prompt=prompt) for prompt in self.prompts[:SHOWN_PROMPTS])
        return self.grid([path for part in parts for path in part.paths[:shown]], shown)

    def _embedded(self, concept: Concept) -> Tensor:
        return self.profile.dino.encode_images(concept.references)


def _filled(prompt: str, pair: Pair, arm: str) -> str:
    first, second = (one.class_noun if arm == "control" else f"<{one.name}>" for one in pair)
    return prompt.replace("{first}", first).replace("{second}", second)


def _read_crop(path: Path, box: tuple[float, ...]) -> Image.Image:
    return crop(load_image(path), box)


def _ceiling(references: dict[str, Tensor]) -> float:
    """Mean margin of the reference images, which need no prompt and stand alone in theirs."""
    margins = [
        within_set(references[a]).mean() - pair_mean(references[a], references[b]).mean()
        for a, b in permutations(references, 2)
    ]
    return float(torch.stack(margins).mean())
