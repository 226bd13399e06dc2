"""Scores a style over prompts x style references, beside the same prompts without the reference (control)."""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from PIL import Image

from src.data.images import Picture, load_image
from src.data.ranges import Count, Seed
from src.data.request import Generator, Request
from src.data.styles import StylePrompt, StyleReference
from src.eval.draw import draw_timed
from src.eval.grid import Grid
from src.eval.profile import Profile
from src.eval.protocols.base import Frame, Item, Protocol, scored_rows
from src.eval.results.results import Row, Table
from src.eval.scores.harmonics import harmonic_of_means, harmonics_per_image
from src.eval.scores.sets import SetScores
from src.eval.scores.style import EVERY, GUARDS, PAIRED, SCORES, StyleScorer
from src.eval.statistics.bootstrap import bootstrap_mean, bootstrap_statistic
from src.eval.statistics.paired import paired_difference, paired_statistic

ARMS = ("control", "style")
FACTORS = ("prompt", "style")
HARMONICS = ("harmonic", "mean_of_harmonics")
SHOWN_PROMPTS = 10


def summarise(rows: Sequence[Row], seed: int) -> dict[str, Any]:
    """Intervals per arm and score, and the change from control to style, image by image.

    Images are clustered by prompt and by style, both crossed. ``harmonic`` is that of the two means, inside each
    replicate; ``mean_of_harmonics`` takes it image by image.
    """
    control, style = ([row for row in rows if row["arm"] == arm] for arm in ARMS)
    groups, ours, theirs = _groups(style), _pair(style), _pair(control)
    change: dict[str, Any] = {score: paired_difference(ours[score], theirs[score], groups, seed) for score in SCORES}
    change["harmonic"] = paired_statistic(ours, theirs, harmonic_of_means, groups, seed)
    ours_each, theirs_each = (harmonics_per_image(*pair.values()) for pair in (ours, theirs))
    change["mean_of_harmonics"] = paired_difference(ours_each, theirs_each, groups, seed)
    return {"control": _intervals(control, seed), "style": _intervals(style, seed), "change": change}


def overall_table(summary: Mapping[str, Any], profile: str, num_styles: int) -> Table:
    """The scores that papers report, over all styles."""
    columns = (*SCORES, *HARMONICS)
    rows = [[arm, *(str(summary[arm][score]) for score in columns)] for arm in (*ARMS, "change")]
    return Table(f"{num_styles} styles, mean [95% interval], profile {profile}", ["", *columns], rows)


def guards_table(summary: Mapping[str, Any], profile: str) -> Table:
    """What a high S_img may be bought with."""
    columns = [guard for guard in (*PAIRED, *GUARDS) if guard in summary["style"]]
    rows = [[arm, *(str(summary[arm].get(guard, "")) for guard in columns)] for arm in ARMS]
    return Table(f"Leakage, copies, diversity, profile {profile}", ["", *columns], rows)


def style_table(each: Mapping[str, Mapping[str, Any]], profile: str) -> Table:
    """One line per style."""
    guards = ("leakage", "copied")
    columns = ["style", *(f"{score} {arm}" for score in SCORES for arm in ARMS), "harmonic", *guards]
    rows = [
        [
            name,
            *(f"{summary[arm][score].mean:.3f}" for score in SCORES for arm in ARMS),
            str(summary["style"]["harmonic"]),
            *(str(summary["style"].get(guard, "")) for guard in guards),
        ]
        for name, summary in each.items()
    ]
    return Table(f"Each style, profile {profile}", columns, rows)


def _intervals(rows: Sequence[Row], seed: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for score in EVERY:
        # A style that is words alone has no score against an image.
        scored = [row for row in rows if row[score] != ""]
        if scored:
            found[score] = bootstrap_mean([row[score] for row in scored], _groups(scored), seed)
    pair, groups = _pair(rows), _groups(rows)
    found["harmonic"] = bootstrap_statistic(pair, harmonic_of_means, groups, seed)
    found["mean_of_harmonics"] = bootstrap_mean(harmonics_per_image(*pair.values()), groups, seed)
    return found


def _pair(rows: Sequence[Row]) -> dict[str, list[float]]:
    return {score: [row[score] for row in rows] for score in SCORES}


def _groups(rows: Sequence[Row]) -> list[list[Any]]:
    return [[row[factor] for row in rows] for factor in FACTORS]


class StyleProtocol(Protocol[StyleReference]):
    """S_txt, S_img and their harmonic, as in arXiv 2507.04482, with what a high S_img may be bought with.

    The prompts of both arms name the style; the control is drawn without the reference.

    Args:
        prompts: Without any style, as text or with their category; at least two.
        styles: What to draw them in.
        num_seeds: Images per prompt and style.
        profile: Encoders and rules; its name stands with every number.
        images_dir: Where the images go; what it holds is not drawn again.
        set_metrics: Numbers of the whole set that are asked for.
        seed: Seeds the first image of each prompt, and the bootstrap.

    Raises:
        ValueError: If there is too little to score, names repeat, or the profile's rules do not fit.
    """

    name, title = "style", "Prompts in styles"
    grouped_by, settings = ("prompt", "style", "category"), ("prompts", "num_seeds")
    scores = EVERY

    def __init__(
        self,
        prompts: Sequence[StylePrompt | str],
        styles: Sequence[StyleReference],
        num_seeds: Count,
        profile: Profile,
        images_dir: str,
        set_metrics: SetScores,
        seed: Seed = 0,
    ) -> None:
        super().__init__(profile, images_dir, seed)
        profile.require(["full", "without_style"], ["one_each", "within_set"])
        self.contents = [prompt if isinstance(prompt, StylePrompt) else StylePrompt(prompt) for prompt in prompts]
        self.prompts = [prompt.plain for prompt in self.contents]
        self.styles, self.num_seeds, self.set_metrics = list(styles), num_seeds, set_metrics
        if len(self.prompts) < 2 or not styles or num_seeds < 1:
            raise ValueError(f"need two prompts, a style and a seed, got {len(prompts)}, {len(styles)} and {num_seeds}")
        _check_distinct("prompts", [prompt.content for prompt in self.contents])
        _check_distinct("styles", [style.name for style in self.styles])
        _check_pairing(profile, self.styles)

    def items(self, concepts: Sequence[object] = ()) -> list[Item[StyleReference]]:
        """Both arms, style by style, prompt by prompt, seed by seed."""
        seeds = range(self.seed, self.seed + self.num_seeds)
        return [self._item(*of) for of in product(ARMS, self.styles, self.contents, seeds)]

    def _item(self, arm: str, style: StyleReference, prompt: StylePrompt, seed: int) -> Item[StyleReference]:
        category = {"category": prompt.category} if any(one.category for one in self.contents) else {}
        return Item(
            Request(prompt.styled(style.style), seed, style=style.reference if arm == "style" else None),
            {"style": style.name, "arm": arm, "prompt": prompt.content, **category, "seed": seed},
            style,
        )

    def check(self, concepts: Sequence[object]) -> None:
        """Refuse encoders without weights, and set metrics that need more images than there are."""
        super().check(concepts)
        self.set_metrics.check(len(self.styles) * len(self.prompts) * self.num_seeds, self.num_seeds)

    def references(self, concepts: Sequence[object]) -> dict[str, Image.Image]:
        """The image of each style that has one."""
        return {style.name: load_image(style.path) for style in self.styles if style.is_image}

    def draw(self, generator: Generator, requests: Sequence[Request]) -> list[Path]:
        """Arm by arm, so that no batch holds images of both: those of the control are often there already."""
        generator.check(requests)
        half = len(requests) // 2
        paths: list[Path] = []
        for arm, of in zip(ARMS, (requests[:half], requests[half:]), strict=True):
            drawn, self.seconds[arm] = draw_timed(generator, of, self.images_dir)
            paths += drawn
        return paths

    def score(self, frame: Frame[StyleReference], generator: Generator) -> list[Row]:
        """Style by style, the control and what was drawn in the style."""
        scorer = StyleScorer(self.profile, self.contents, self.styles, self.num_seeds)
        rows: list[Row] = []
        for part in frame.parts("style"):
            style, arms = part.targets[0], [part.part(arm=arm) for arm in ARMS]
            control, drawn = (scorer.embed(arm.paths) for arm in arms)
            found = [scorer(style, control), scorer(style, drawn, control)]
            rows += [row for arm, of in zip(arms, found, strict=True) for row in scored_rows(arm.places, of, of)]
        return rows

    def summarise(self, frame: Frame[StyleReference]) -> dict[str, Any]:
        """Over all styles, for each, and of the whole set of images of each arm."""
        each = {style.name: [row for row in frame.rows if row["style"] == style.name] for style in self.styles}
        return {
            "overall": summarise(frame.rows, self.seed),
            "styles": {name: summarise(rows, self.seed) for name, rows in each.items()},
            "set_metrics": {arm: self._set_metrics(frame.part(arm=arm).paths) for arm in ARMS},
        }

    def _set_metrics(self, paths: Sequence[Path]) -> dict[str, float]:
        # Images that differ in their seed alone stand together.
        size = self.num_seeds
        return self.set_metrics([paths[start : start + size] for start in range(0, len(paths), size)])

    def metrics(self, frame: Frame[StyleReference]) -> dict[str, Any]:
        """The summaries, and what each style is."""
        told = {
            style.name: {"descriptor": style.style, "content": style.content, "reference": style.reference.key()}
            for style in self.styles
        }
        return frame.summary | {"styles": {name: of | frame.summary["styles"][name] for name, of in told.items()}}

    def compared(self, frame: Frame[StyleReference]) -> dict[str, Any]:
        """The images in the styles; leakage too where every style is shown."""
        known = "leakage" in frame.summary["overall"]["style"] and all(style.is_image for style in self.styles)
        leakage = ["leakage"] if known else []
        return {
            "rows": {"arm": "style"},
            "factors": list(FACTORS),
            "scores": ["s_txt", "s_content", *leakage, "s_img"],
            "harmonic": list(SCORES),
            "frontiers": [["s_txt", "s_img"], ["s_content", "s_img"], *(["s_txt", one] for one in leakage)],
        }

    def tables(self, frame: Frame[StyleReference]) -> list[Table]:
        """Scores, guards, each style and, where they are asked for, numbers of the whole sets."""
        overall, each, sets = frame.summary.values()
        profile = self.profile.name
        tables = [
            overall_table(overall, profile, len(each)),
            guards_table(overall, profile),
            style_table(each, profile),
        ]
        if self.set_metrics.names:
            lines = [[arm, *(f"{value:.3f}" for value in found.values())] for arm, found in sets.items()]
            tables.append(Table("Of the whole sets", ["", *sets["style"]], lines))
        return tables

    def grids(self, frame: Frame[StyleReference]) -> dict[str, Grid]:
        """One picture per arm."""
        return {f"grid_{arm}": self._grid(frame.part(arm=arm)) for arm in ARMS}

    def _grid(self, frame: Frame[StyleReference]) -> Grid:
        """A column per style: the reference, then the first prompts with the first seed."""
        blank = Image.new("RGB", (1, 1), "white")
        cells: list[Picture] = [style.path if style.is_image else blank for style in self.styles]
        captions = [f"reference {style.name}" for style in self.styles]
        for prompt in self.contents[:SHOWN_PROMPTS]:
            part = frame.part(prompt=prompt.content, seed=self.seed)
            cells += part.paths
            captions += [item.request.prompt for item in part.items]
        return self.grid(cells, len(self.styles), captions)


def _check_pairing(profile: Profile, styles: Sequence[StyleReference]) -> None:
    words = [style.name for style in styles if not style.is_image]
    if words and profile.pairing == "one_each":
        raise ValueError(
            f"the profile {profile.name} compares with style images, but {words[0]} is words alone; "
            "choose one that compares within a set, e.g. metrics=style_aligned"
        )


def _check_distinct(what: str, names: Sequence[str]) -> None:
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        raise ValueError(f"{what} must differ, and {repeated[0]!r} is there twice")
