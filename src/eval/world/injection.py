"""How much of another prompt an image takes up: the studies of Fig. 2, 3 and 7 of arXiv 2507.04482."""

from collections.abc import Sequence
from typing import Any

from src.data.ranges import Count, Seed
from src.data.request import Generator, Request, TextStyle
from src.data.world.caption_tests import PromptPair, prompt_pairs
from src.eval.profile import Profile
from src.eval.protocols.base import Frame, Item, Protocol, scored_rows
from src.eval.results.results import Row, Table
from src.eval.world.probe import Probe


class InjectionProtocol(Protocol[PromptPair]):
    """Images of a base prompt into which a generator injects another prompt, in whatever way it does.

    Scores of an image: CLIP similarity to the injected and to the base prompt, and whether the probe, trained on ground
    truth, reads the injected prompt's object and its colour.

    Args:
        difference: In what the two prompts of a pair differ: ``object``, ``color`` or ``both``.
        num_pairs: How many pairs of prompts.
        num_seeds: Images per pair.
        profile: Its CLIP and scale.
        probe: Reads object and colour.
        images_dir: Where the images go; what it holds is not drawn again.
        seed: Draws the pairs; seeds the first image of each, and the bootstrap.

    Raises:
        ValueError: If the difference is unknown.
    """

    name, title, settings = "injection", "An injected prompt", ("difference", "num_images")
    scores = ("clip_injected", "clip_base", "injected_object", "injected_color")

    def __init__(
        self,
        difference: str,
        num_pairs: Count,
        num_seeds: Count,
        profile: Profile,
        probe: Probe,
        images_dir: str,
        seed: Seed = 0,
    ) -> None:
        super().__init__(profile, images_dir, seed)
        self.pairs, self.num_seeds = prompt_pairs(difference, num_pairs, seed), num_seeds
        self.difference, self.probe, self.num_images = difference, probe, num_pairs * num_seeds

    def items(self, concepts: Sequence[object] = ()) -> list[Item[PromptPair]]:
        """The base prompt of each pair, its other prompt as the style, seed by seed."""
        return [
            Item(
                Request(pair.base, seed, style=TextStyle(pair.injected)),
                {"prompt": f"{pair.base} | {pair.injected}", "seed": seed},
                pair,
            )
            for pair in self.pairs
            for seed in range(self.seed, self.seed + self.num_seeds)
        ]

    def score(self, frame: Frame[PromptPair], generator: Generator) -> list[Row]:
        """CLIP's likeness to both prompts, and what the probe reads."""
        pairs, clip = frame.targets, self.profile.clip
        embedded, read = clip.encode_images(frame.paths), self.probe.read(frame.paths)
        texts = {"clip_injected": [pair.injected for pair in pairs], "clip_base": [pair.base for pair in pairs]}
        objects = [word == pair.injected_object for word, pair in zip(read["object"], pairs, strict=True)]
        colors = [word == pair.injected_color for word, pair in zip(read["color"], pairs, strict=True)]
        similar = {name: self.profile.text_score(embedded, clip.encode_texts(text)) for name, text in texts.items()}
        return scored_rows(frame.places, {**similar, "injected_object": objects, "injected_color": colors}, self.scores)

    def compared(self, frame: Frame[PromptPair]) -> dict[str, Any]:
        """All images; object against colour in the frontier."""
        return {**super().compared(frame), "frontiers": [self.scores[2:]]}

    def tables(self, frame: Frame[PromptPair]) -> list[Table]:
        """One line of means."""
        title = (
            f"{len(frame.rows)} images, prompts differ in {self.difference}, mean [95%], profile {self.profile.name}"
        )
        return [Table(title, ["", *self.scores], [["drawn", *(str(frame.summary[name]) for name in self.scores)]])]

    def caption(self, item: Item[PromptPair]) -> str:
        """Both prompts."""
        return f"{item.target.base} + {item.target.injected}"
