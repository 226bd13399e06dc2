"""From scores per image to intervals and tables: what was drawn, beside the scenes themselves and other scenes."""

from collections.abc import Mapping, Sequence

from src.data.world.caption_tests import CaptionTest
from src.eval.results import Table
from src.eval.statistics import Interval, bootstrap_mean

Summary = dict[str, dict[str, Interval]]
"""By kind, ``all`` first, the interval of every score."""

ALL = "all"
HEADINGS = {"drawn": "drawn", "ceiling": "ceiling: its scene", "chance": "chance: another scene"}
"""By arm."""


def summarise(tests: Sequence[CaptionTest], scores: Mapping[str, Sequence[float]], seed: int) -> Summary:
    """Intervals over all images and over those of each kind; images of one caption are one cluster.

    Args:
        tests: One per image.
        scores: By name, one per image.
        seed: Of the bootstrap.
    """
    found: Summary = {}
    for kind, places in _places(tests).items():
        captions = [[tests[at].caption for at in places]]
        found[kind] = {
            name: bootstrap_mean([values[at] for at in places], captions, seed) for name, values in scores.items()
        }
    return found


def kind_tables(
    tests: Sequence[CaptionTest],
    told: Sequence[str],
    read: Sequence[float],
    arms: Mapping[str, Summary],
    profile: str,
) -> list[Table]:
    """One table for all kinds together and one for each: a line per score, a column per arm.

    Args:
        tests: One per image.
        told: What the generator was asked for.
        read: What share of it the generator takes.
        arms: Of each key of ``HEADINGS``; ``drawn`` has every score.
        profile: Its name.
    """
    return [
        Table(
            f"{kind}: {_about([told[at] for at in places], [read[at] for at in places])}, profile {profile}",
            ["mean [95%]", *HEADINGS.values()],
            [[name, *(str(arms[arm][kind].get(name, "")) for arm in HEADINGS)] for name in arms["drawn"][kind]],
        )
        for kind, places in _places(tests).items()
    ]


def _places(tests: Sequence[CaptionTest]) -> dict[str, list[int]]:
    """By kind, ``all`` first, which images belong to it."""
    kinds = {kind: [at for at, test in enumerate(tests) if test.kind == kind] for kind in _kinds(tests)}
    return {ALL: list(range(len(tests))), **kinds}


def _kinds(tests: Sequence[CaptionTest]) -> list[str]:
    return list(dict.fromkeys(test.kind for test in tests))


def _about(told: Sequence[str], read: Sequence[float]) -> str:
    words = sum(len(text.split()) for text in told) / len(told)
    return f"{len(told)} images, captions of {words:.0f} words, {sum(read) / len(read):.0%} of them read"
