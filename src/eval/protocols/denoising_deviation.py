"""How far do concepts lead denoising from what the plain model does with the same prompt and noise?"""

from collections.abc import Sequence
from functools import partial
from typing import Any
from typing import Protocol as Interface

from PIL import Image
from torch import Tensor

from src.data.images import Picture, as_image
from src.data.ranges import Count, Seed
from src.data.request import Generator, Request
from src.data.trajectory import Trajectory
from src.eval.concepts import Concept
from src.eval.grid import Grid
from src.eval.profile import Profile
from src.eval.protocols.base import Frame, Item, Protocol, scored_rows
from src.eval.protocols.layout import Box, crop
from src.eval.protocols.multi_concept import Combination, combinations, filled
from src.eval.results.results import Row, Table
from src.eval.scores.deviation import stepwise_deviation, structure_deviation, trajectory_deviation
from src.eval.statistics.bootstrap import bootstrap_mean

SCORES = ("stepwise", "trajectory", "structure")
GRID = 4
CELLS: list[Box] = [
    (column / GRID, row / GRID, (column + 1) / GRID, (row + 1) / GRID) for row in range(GRID) for column in range(GRID)
]
"""Cells of a picture whose likeness to each other is its structure."""
SHOWN_PLACES = 8


class Traced(Interface):
    """What a generator must be able to do beside drawing: ``src.modules.backbones.trajectory.TracedGenerator``."""

    def trajectory(self, requests: Sequence[Request], along: Trajectory | None = None) -> Trajectory:
        """Return the path of denoising of each request; latents are put on the path ``along`` after each step."""


class DenoisingDeviationProtocol(Protocol[Combination]):
    """The deviation of customised denoising from the plain model's, for 0, 1, 2, ... concepts in the same prompt.

    In a prompt of M slots the first N are concepts and the others their plain nouns, for N from 0 to M. So prompt and
    noise are the same for every N, and for every method; N = 0 is the plain model. Prompts and seeds take turns through
    the runs of M neighbours of the concepts, so that each concept stands in every slot.

    - ``stepwise``: on the plain model's latents, see ``stepwise_deviation``;
    - ``trajectory``: between latents on their own ways, see ``trajectory_deviation``;
    - ``structure``: between the final pictures, by DINO of 4 x 4 cells, see ``structure_deviation``.

    Args:
        prompts: Templates with equally many slots ``{}``.
        num_seeds: Images of each prompt and number of concepts.
        profile: Its DINO sees the cells.
        images_dir: Where the images go; what it holds is not drawn again.
        seed: Seeds the first image of each prompt, and the bootstrap.

    Raises:
        ValueError: If there is no template, or they have no or other numbers of slots.
    """

    name, title = "denoising_deviation", "How far concepts lead denoising from the plain model's"
    scores, scored_by, settings = SCORES, "combination", ("prompts", "num_seeds")

    def __init__(
        self, prompts: Sequence[str], num_seeds: Count, profile: Profile, images_dir: str, seed: Seed = 0
    ) -> None:
        super().__init__(profile, images_dir, seed)
        slots = sorted({prompt.count("{}") for prompt in prompts})
        if len(slots) != 1 or slots == [0]:
            raise ValueError(
                f"protocol.prompts have {slots or 'no'} slots {{}}; give prompts with equally many, 1 or more"
            )
        self.prompts, self.num_seeds, self.slots = list(prompts), num_seeds, slots[0]

    def items(self, concepts: Sequence[Concept]) -> list[Item[Combination]]:
        """Prompt by prompt, seed by seed, with 0 to M concepts."""
        runs = combinations(concepts, self.slots)
        return [
            Item(
                Request(filled(prompt, chosen, number), self.seed + at),
                {
                    "number": str(number),
                    "combination": "_".join(one.name for one in chosen),
                    "arm": "concept" if number else "control",
                    "prompt": prompt,
                    "seed": self.seed + at,
                },
                chosen,
            )
            for start, prompt in enumerate(self.prompts)
            for at in range(self.num_seeds)
            for chosen in [runs[(start + at) % len(runs)]]
            for number in range(self.slots + 1)
        ]

    def check(self, concepts: Sequence[Concept]) -> None:
        """Refuse fewer concepts than prompts have slots."""
        if len(concepts) < self.slots:
            raise ValueError(
                f"protocol.prompts ask for {self.slots} concepts, but there are {len(concepts)}; add bank.NAME=PATH "
                "for each, or give other protocol.prompts"
            )
        super().check(concepts)

    def draw(self, generator: Generator, requests: Sequence[Request]) -> Any:
        """Refuse a generator whose path of denoising is hidden, and draw what is missing."""
        if not hasattr(generator, "trajectory"):
            raise ValueError(
                f"a {type(generator).__name__} does not show its path of denoising; take method=latexblend, or one of "
                "its rivals"
            )
        return super().draw(generator, requests)

    def score(self, frame: Frame[Combination], generator: Any) -> list[Row]:
        """The pictures of one combination, number by number."""
        plain = frame.part(number="0")
        stock, laid_out = _path(generator, plain), self._cells(plain.paths)
        rows: list[Row] = []
        for number in range(self.slots + 1):
            part = frame.part(number=str(number))
            # The same files have the same cells, so that nothing differs from itself by rounding.
            cells = laid_out if part.paths == plain.paths else self._cells(part.paths)
            found = {
                "stepwise": stepwise_deviation(_path(generator, part, stock).noise, stock.noise),
                "trajectory": trajectory_deviation(_path(generator, part).latents, stock.latents),
                "structure": structure_deviation(cells, laid_out),
            }
            rows += scored_rows(part.places, found, SCORES)
        return rows

    def _cells(self, pictures: Sequence[Picture]) -> Tensor:
        """Unit embeddings of the cells of each picture, ``(B, P, D)``."""
        crops = [partial(_cell, picture, box) for picture in pictures for box in CELLS]
        return self.profile.dino.encode_images(crops).unflatten(0, (len(pictures), len(CELLS)))

    def summarise(self, frame: Frame[Combination]) -> dict[str, Any]:
        """By number of concepts, the intervals, clustered by prompt and combination."""
        return {str(number): self._intervals(frame.rows, str(number)) for number in range(self.slots + 1)}

    def _intervals(self, rows: Sequence[Row], number: str) -> dict[str, Any]:
        of = [row for row in rows if row["number"] == number]
        groups = [[row[factor] for row in of] for factor in ("prompt", "combination")]
        return {score: bootstrap_mean([row[score] for row in of], groups, self.seed) for score in SCORES}

    def metrics(self, frame: Frame[Combination]) -> dict[str, Any]:
        """The intervals by number of concepts."""
        return {"numbers": frame.summary}

    def compared(self, frame: Frame[Combination]) -> dict[str, Any]:
        """The images of one concept and more."""
        factors = {"rows": {"arm": "concept"}, "factors": ["prompt", "combination"], "scores": list(SCORES)}
        return {**factors, "by": "number"}

    def tables(self, frame: Frame[Combination]) -> list[Table]:
        """One line per number of concepts."""
        lines = [[number, *(str(found[score]) for score in SCORES)] for number, found in frame.summary.items()]
        title = f"Deviation from the plain model, mean [95% interval], profile {self.profile.name}"
        return [Table(title, ["concepts", *SCORES], lines)]

    def grids(self, frame: Frame[Combination]) -> dict[str, Grid]:
        """A line for each of the first prompts and seeds, from no concept to all."""
        width = self.slots + 1
        return {"grid": self.grid(frame.paths[: width * SHOWN_PLACES], width)}


def _path(generator: Traced, part: Frame[Combination], along: Trajectory | None = None) -> Trajectory:
    return generator.trajectory([item.request for item in part.items], along)


def _cell(picture: Picture, box: Box) -> Image.Image:
    return crop(as_image(picture), box)
