"""Scores concepts on a prompt list, between the plain class noun (control) and the references themselves (ceiling)."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor

from src.data.files import write_text
from src.data.images import load_image
from src.data.pictures import image_grid
from src.data.request import Generator, Request
from src.eval.draw import draw_missing, manifest_lines
from src.eval.profile import Profile
from src.eval.protocols.subjects import ScoredConcept, check_references
from src.eval.results.results import Table, per_group, provenance, write_results, write_rows
from src.eval.scores.leakage import copies
from src.eval.scores.similarity import diversity, within_set
from src.eval.statistics.bootstrap import Interval, bootstrap_mean, bootstrap_ratio

ARMS = ("control", "concept", "ceiling")
SCORES = ("clip_t", "clip_i", "dino")
GUARDS = ("diversity", "copied")
"""What a high DINO may be bought with: samples of a prompt that are all alike, pictures that repeat a reference."""

Row = dict[str, Any]
"""One image: concept, arm, prompt, seed and its scores; an empty text where a score does not apply."""


def summarise(rows: Sequence[Row], seed: int) -> dict[str, Any]:
    """Intervals per arm and score, the share of the DINO gap closed and the relative change of CLIP-T.

    Images are clustered by prompt and, where there are several, by concept, both crossed; references by concept. In the
    gap the ceiling is taken as known.
    """
    by_arm = {arm: [row for row in rows if row["arm"] == arm] for arm in ARMS}
    result: dict[str, Any] = {}
    for arm, members in by_arm.items():
        factors = ("concept",) if arm == "ceiling" else ("prompt", "concept")
        groups = [[row[factor] for row in members] for factor in factors]
        scores = [score for score in (*SCORES, *GUARDS) if members[0][score] != ""]
        result[arm] = {score: bootstrap_mean([row[score] for row in members], groups, seed) for score in scores}
    control, concept = by_arm["control"], by_arm["concept"]
    groups = [[row[factor] for row in concept] for factor in ("prompt", "concept")]
    ceilings = {name: _mean(row["dino"] for row in by_arm["ceiling"] if row["concept"] == name) for name in groups[1]}
    gained = [ours["dino"] - theirs["dino"] for ours, theirs in zip(concept, control, strict=True)]
    gap = [ceilings[row["concept"]] - row["dino"] for row in control]
    result["dino_gap_closed"] = bootstrap_ratio(gained, gap, groups, seed)
    change = [ours["clip_t"] - theirs["clip_t"] for ours, theirs in zip(concept, control, strict=True)]
    result["clip_t_change"] = bootstrap_ratio(change, [row["clip_t"] for row in control], groups, seed)
    return result


def as_json(summary: dict[str, Any]) -> dict[str, Any]:
    """Intervals as plain numbers, at any depth."""
    return {k: v.as_dict() if isinstance(v, Interval) else as_json(v) for k, v in summary.items()}


def overall_table(summary: dict[str, Any], profile: str, number: int) -> Table:
    """Control, concept and ceiling over all concepts."""
    rows = [[arm, *(str(summary[arm].get(score, "")) for score in (*SCORES, *GUARDS))] for arm in ARMS]
    rows.append(["DINO gap closed", "", "", str(summary["dino_gap_closed"]), "", ""])
    rows.append(["CLIP-T change", str(summary["clip_t_change"]), "", "", "", ""])
    title = f"{number} concept{'s' if number > 1 else ''}, mean [95% interval], profile {profile}"
    return Table(title, ["", *SCORES, *GUARDS], rows)


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


CELL = 160
SHOWN_SEEDS = 2


class ConceptProtocol:
    """CLIP-T, CLIP-I and DINO of each concept over prompts and seeds, as in DreamBooth (arXiv 2208.12242).

    Beside them, in DINO's space: diversity between the seeds of a prompt, and the share of images that are nearer to a
    reference than any two references are to each other.

    CLIP-T is taken with the plain prompt, class noun in place of the concept. The control shares prompts and seeds
    with the concept, so that differences are paired.

    Args:
        prompts: Templates with one ``{}``, such as ``a {} on the grass``.
        num_seeds: Images per prompt and concept.
        profile: Encoders and scale of the scores; its name stands with every number.
        images_dir: Where the images go; what it holds is not drawn again.
        seed: Of the first image of each prompt, and of the bootstrap.

    Raises:
        ValueError: If a template has not exactly one slot, there is nothing to score, or the profile asks for another
            text or other pairs.
    """

    def __init__(
        self,
        prompts: Sequence[str],
        num_seeds: int,
        profile: Profile,
        images_dir: str,
        seed: int = 0,
    ) -> None:
        profile.require(["class_noun"], ["all"])
        for prompt in prompts:
            if prompt.count("{}") != 1:
                raise ValueError(f"the prompt {prompt!r} needs one {{}}, where the concept stands: 'a {{}} at night'")
        if not prompts or num_seeds < 1:
            raise ValueError(f"need at least one prompt and one seed, got {len(prompts)} and {num_seeds}")
        self.prompts, self.num_seeds, self.seed = list(prompts), num_seeds, seed
        self.profile, self.images_dir = profile, Path(images_dir)

    def requests(self, concepts: Sequence[ScoredConcept]) -> list[Request]:
        """Everything to draw: concept by concept, both arms, prompt by prompt, seed by seed."""
        return [
            Request(prompt.replace("{}", word), seed)
            for concept in concepts
            for word in _words(concept).values()
            for prompt, seed in self._places()
        ]

    def check(self, concepts: Sequence[ScoredConcept]) -> None:
        """Refuse what could not be scored, before anything is trained or drawn for it.

        Raises:
            ValueError: If there is no concept, one has fewer than two references, or an encoder's weights are missing.
        """
        if not concepts:
            raise ValueError("there is no concept to score; add bank.NAME=PATH")
        check_references(concepts)
        self.profile.identity()

    def shown(self, concepts: Sequence[ScoredConcept]) -> dict[str, Image.Image]:
        """A picture to look at beside the images, by what a row calls it."""
        return {concept.name: concept.references[0] for concept in concepts}

    def run(self, generator: Generator, concepts: Sequence[ScoredConcept], run_dir: str) -> dict[str, Any]:
        """Generate, score, write ``metrics.json``, tables per image, prompt and concept, ``report.html`` and grids.

        Raises:
            ValueError: As of ``check``.
        """
        self.check(concepts)
        requests = self.requests(concepts)
        paths = draw_missing(generator, requests, self.images_dir)
        write_text(Path(run_dir) / "images.jsonl", manifest_lines(requests, paths))
        rows: list[Row] = []
        grids = {}
        for concept, files in zip(concepts, _batched(paths, 2 * len(self._places())), strict=True):
            arms = dict(zip(ARMS, _batched(files, len(self._places())), strict=False))
            rows += [row for arm, made in arms.items() for row in self._score(concept, arm, made)]
            rows += self._ceiling(concept)
            grids[f"grid_{concept.name}"] = self._grid(concept, arms)
        metrics, tables = self._results(rows, concepts)
        metrics |= {"generator": generator.identity(), **self.profile.identity(), **provenance()}
        for name in ("prompt", "concept"):
            write_rows(per_group(rows, ("arm", name), SCORES), Path(run_dir) / f"per_{name}")
        write_results(run_dir, "Concepts on a prompt list", metrics, tables, rows, grids)
        return metrics

    def _results(self, rows: list[Row], concepts: Sequence[ScoredConcept]) -> tuple[dict[str, Any], list[Table]]:
        """What metrics.json and table.md hold, but for where it comes from."""
        overall = summarise(rows, self.seed)
        each = {c.name: summarise([row for row in rows if row["concept"] == c.name], self.seed) for c in concepts}
        metrics = {
            "protocol": "concept",
            "prompts": self.prompts,
            "num_seeds": self.num_seeds,
            "seed": self.seed,
            "overall": as_json(overall),
            "concepts": {
                c.name: {"class_noun": c.class_noun, "num_references": len(c.references), **as_json(each[c.name])}
                for c in concepts
            },
            "compared": {
                "rows": {"arm": "concept"},
                "factors": ["prompt", "concept"],
                "scores": list(SCORES),
                "harmonic": ["clip_t", "dino"],
            },
        }
        return metrics, [
            overall_table(overall, self.profile.name, len(concepts)),
            concept_table(each, self.profile.name),
        ]

    def _places(self) -> list[tuple[str, int]]:
        return [(prompt, self.seed + seed) for prompt in self.prompts for seed in range(self.num_seeds)]

    def _score(self, concept: ScoredConcept, arm: str, files: Sequence[Path]) -> list[Row]:
        places, images = self._places(), [load_image(path) for path in files]
        clip, dino = self.profile.clip, self.profile.dino
        embedded, identity = clip.encode_images(images), dino.encode_images(images)
        references = dino.encode_images(concept.references)
        plain = [prompt.replace("{}", concept.class_noun) for prompt, _ in places]
        scores = {
            "clip_t": self.profile.text_score(embedded, clip.encode_texts(plain)),
            "clip_i": self.profile.image_score(embedded, clip.encode_images(concept.references)),
            "dino": self.profile.image_score(identity, references),
            "copied": copies(identity, references).above.double(),
        }
        if self.num_seeds > 1:
            scores["diversity"] = torch.cat([diversity(one_prompt) for one_prompt in identity.split(self.num_seeds)])
        return _rows(concept.name, arm, places, scores, [path.name for path in files])

    def _ceiling(self, concept: ScoredConcept) -> list[Row]:
        """References against each other; they answer no prompt, so CLIP-T has no ceiling."""
        places = [("", index) for index in range(len(concept.references))]
        encoders = {"clip_i": self.profile.clip, "dino": self.profile.dino}
        scores = {key: within_set(encoder.encode_images(concept.references)) for key, encoder in encoders.items()}
        return _rows(concept.name, "ceiling", places, scores, [""] * len(places))

    def _grid(self, concept: ScoredConcept, files: Mapping[str, Sequence[Path]]) -> Image.Image:
        """One line per prompt: a reference, then control, then concept."""
        shown = min(self.num_seeds, SHOWN_SEEDS)
        cells, captions = [], []
        for index, prompt in enumerate(self.prompts):
            first = index * self.num_seeds
            cells.append(concept.references[index % len(concept.references)])
            captions.append(f"reference of {concept.name}")
            for arm, word in _words(concept).items():
                cells += [load_image(path) for path in files[arm][first : first + shown]]
                captions += [prompt.replace("{}", word)] * shown
        return image_grid([ImageOps.contain(cell, (CELL, CELL)) for cell in cells], 1 + 2 * shown, captions)


def _words(concept: ScoredConcept) -> dict[str, str]:
    """What stands in the slot of a prompt, by arm, in the order of ``ARMS``."""
    return {"control": concept.class_noun, "concept": f"<{concept.name}>"}


def _rows(
    name: str, arm: str, places: list[tuple[str, int]], scores: dict[str, Tensor], files: Sequence[str]
) -> list[Row]:
    return [
        {"concept": name, "arm": arm, "prompt": prompt, "seed": seed, "file": files[index]}
        | {key: float(scores[key][index]) if key in scores else "" for key in (*SCORES, *GUARDS)}
        for index, (prompt, seed) in enumerate(places)
    ]


def _batched(items: Sequence[Path], size: int) -> list[Sequence[Path]]:
    """Consecutive parts of ``size`` items (``itertools.batched`` needs Python 3.12)."""
    return [items[start : start + size] for start in range(0, len(items), size)]
