"""What all protocols share: their seeds, and what their intervals take as random."""

from pathlib import Path

import numpy as np
import pytest

from src.data.request import Request
from src.data.styles import style_references
from src.data.world.export import write_style_images
from src.eval.concepts import Concept
from src.eval.profile import Profile
from src.eval.protocols.base import Frame, Item, Protocol, scored_rows
from src.eval.protocols.concept import ConceptProtocol
from src.eval.protocols.pairs import PairProtocol
from src.eval.protocols.style import StyleProtocol
from src.eval.scores.sets import PerceptualDiversity, SetMetrics, SetScores
from src.eval.statistics.bootstrap import bootstrap_mean


def seeds_of(requests: list[Request]) -> set[int]:
    return {request.seed for request in requests}


def test_seeds_begin_at_that_of_the_protocol(
    profile: Profile, concepts: list[Concept], clip, dino, tmp_path: Path
) -> None:
    of_concepts = ConceptProtocol(["a {}"], 2, profile, str(tmp_path), seed=7)
    of_pairs = PairProtocol(["a {first} left of a {second}"], 2, profile, str(tmp_path), seed=7)
    write_style_images(tmp_path / "styles")
    styles = style_references(tmp_path / "styles")[:1]
    rules = Profile("styles", clip, dino, text="full", pairing="one_each")
    sets = SetScores([], None, SetMetrics(), PerceptualDiversity())
    of_styles = StyleProtocol(["a red dog", "a blue cat"], styles, 2, rules, str(tmp_path), sets, seed=7)
    for requests in (of_concepts.requests(concepts), of_pairs.requests(concepts), of_styles.requests()):
        assert seeds_of(requests) == {7, 8}


class Loudness(Protocol[None]):
    """Scores that differ from prompt to prompt much more than from seed to seed."""

    name, title, scores = "loudness", "Loudness", ("loud",)

    def items(self, concepts: object) -> list[Item[None]]:
        places = [(prompt, seed) for prompt in "abcdef" for seed in range(10)]
        return [Item(Request(prompt, seed), {"prompt": prompt, "seed": seed}, None) for prompt, seed in places]

    def score(self, frame: Frame[None], generator: object) -> list[dict]:
        loud = [10.0 * ord(item.request.prompt) + item.request.seed for item in frame.items]
        return scored_rows([item.row for item in frame.items], {"loud": loud}, self.scores)


def test_other_prompts_would_have_given_other_means(profile: Profile, tmp_path: Path) -> None:
    protocol = Loudness(profile, str(tmp_path), seed=3)
    items = protocol.items([])
    frame = Frame(items, [tmp_path] * len(items))
    frame.rows.extend(protocol.score(frame, None))
    values = [row["loud"] for row in frame.rows]
    found = protocol.summarise(frame)["loud"]
    assert found == bootstrap_mean(values, [[row["prompt"] for row in frame.rows]], 3)
    # Six prompts 10 apart, t of five degrees of freedom.
    spread = 2 * 2.571 * np.std(10 * np.arange(6), ddof=1) / 6**0.5
    assert found.high - found.low == pytest.approx(spread, rel=0.1)
