"""Scores a style over prompts x style references, beside the same prompts without the reference (control)."""

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from src.data.files import write_text
from src.data.images import load_image
from src.data.pictures import image_grid
from src.data.request import Generator, Request
from src.data.styles import StylePrompt, StyleReference
from src.eval.draw import draw_missing, manifest_lines
from src.eval.profile import Profile
from src.eval.protocols.concept import as_json
from src.eval.results.results import Table, per_group, provenance, write_results, write_rows
from src.eval.scores.harmonics import harmonic_of_means, harmonics_per_image
from src.eval.scores.sets import SetScores
from src.eval.scores.style import GUARDS, PAIRED, SCORES, Embedded, StyleScorer
from src.eval.statistics.bootstrap import bootstrap_mean, bootstrap_statistic
from src.eval.statistics.paired import paired_difference, paired_statistic

ARMS = ("control", "style")
FACTORS = ("prompt", "style")
HARMONICS = ("harmonic", "mean_of_harmonics")

Row = dict[str, Any]
"""One image: style, arm, prompt, seed and its scores; an empty text where a score does not apply."""


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
    for score in (*SCORES, *PAIRED, *GUARDS):
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


CELL = 128
SHOWN_PROMPTS = 10

Files = Mapping[str, Sequence[Path]]
"""By style, its images prompt by prompt and seed by seed."""


class StyleProtocol:
    """S_txt, S_img and their harmonic, as in arXiv 2507.04482, with what a high S_img may be bought with.

    The prompts of both arms name the style; the control is drawn without the reference.

    Args:
        prompts: Without any style, as text or with their category; at least two.
        styles: What to draw them in.
        num_seeds: Images per prompt and style.
        profile: Encoders and rules; its name stands with every number.
        images_dir: Where the images go; what it holds is not drawn again.
        set_metrics: Numbers of the whole set that are asked for.
        seed: Of the first image of each prompt, and of the bootstrap.

    Raises:
        ValueError: If there is too little to score, names repeat, or the profile's rules do not fit.
    """

    def __init__(
        self,
        prompts: Sequence[StylePrompt | str],
        styles: Sequence[StyleReference],
        num_seeds: int,
        profile: Profile,
        images_dir: str,
        set_metrics: SetScores,
        seed: int = 0,
    ) -> None:
        profile.require(["full", "without_style"], ["one_each", "within_set"])
        self.prompts = [prompt if isinstance(prompt, StylePrompt) else StylePrompt(prompt) for prompt in prompts]
        self.styles = list(styles)
        if len(self.prompts) < 2 or not styles or num_seeds < 1:
            raise ValueError(f"need two prompts, a style and a seed, got {len(prompts)}, {len(styles)} and {num_seeds}")
        _check_distinct("prompts", [prompt.content for prompt in self.prompts])
        _check_distinct("styles", [style.name for style in self.styles])
        words = [style.name for style in self.styles if not style.is_image]
        if words and profile.pairing == "one_each":
            raise ValueError(
                f"the profile {profile.name} compares with style images, but {words[0]} is words alone; "
                "choose one that compares within a set, e.g. metrics=style_aligned"
            )
        self.num_seeds, self.seed, self.set_metrics = num_seeds, seed, set_metrics
        self.profile, self.images_dir = profile, Path(images_dir)

    def requests(self, concepts: Sequence[object]) -> list[Request]:
        """Everything to draw: both arms, style by style, prompt by prompt, seed by seed."""
        return [request for arm in ARMS for request in self._requests(arm)]

    def check(self, concepts: Sequence[object]) -> None:
        """Refuse what could not be scored, before anything is drawn.

        Raises:
            ValueError: If weights are missing, or images are too few for what is asked.
        """
        self.profile.identity()
        self.set_metrics.check(len(self.styles) * len(self._places()), self.num_seeds)

    def shown(self, concepts: Sequence[object]) -> dict[str, Image.Image]:
        """A picture to look at beside the images, by what a row calls it: the style's own."""
        return {style.name: load_image(style.path) for style in self.styles if style.is_image}

    def run(self, generator: Generator, concepts: Sequence[object], run_dir: str) -> dict[str, Any]:
        """Generate, score, write ``metrics.json``, tables per image, prompt and style, ``report.html`` and grids.

        Raises:
            ValueError: As of ``check``, or if a request could not be drawn.
        """
        self.check(concepts)
        generator.check(self.requests(concepts))
        # Arm by arm, so that no batch holds images of both: those of the control are often there already.
        paths = {arm: draw_missing(generator, self._requests(arm), self.images_dir) for arm in ARMS}
        every = [path for arm in ARMS for path in paths[arm]]
        write_text(Path(run_dir) / "images.jsonl", manifest_lines(self.requests(concepts), every))
        files = {arm: self._by_style(paths[arm]) for arm in ARMS}
        rows = self._rows(files)
        metrics, tables = self._results(rows, files)
        metrics |= {"generator": generator.identity(), **self.profile.identity(), **provenance()}
        for name in [name for name in ("prompt", "style", "category") if name in rows[0]]:
            write_rows(per_group(rows, ("arm", name), (*SCORES, *PAIRED, *GUARDS)), Path(run_dir) / f"per_{name}")
        grids = {f"grid_{arm}": self._grid(of) for arm, of in files.items()}
        write_results(run_dir, "Prompts in styles", metrics, tables, rows, grids)
        return metrics

    def _results(self, rows: list[Row], files: Mapping[str, Files]) -> tuple[dict[str, Any], list[Table]]:
        """What metrics.json and table.md hold, but for where it comes from."""
        overall, profile = summarise(rows, self.seed), self.profile.name
        each = {style.name: summarise(_of(rows, style), self.seed) for style in self.styles}
        tables = [
            overall_table(overall, profile, len(each)),
            guards_table(overall, profile),
            style_table(each, profile),
        ]
        sets = {arm: self.set_metrics(self._samples(of)) for arm, of in files.items()}
        if self.set_metrics.names:
            lines = [[arm, *(f"{value:.3f}" for value in found.values())] for arm, found in sets.items()]
            tables.append(Table("Of the whole sets", ["", *sets["style"]], lines))
        leakage = ["leakage"] if "leakage" in overall["style"] and all(style.is_image for style in self.styles) else []
        metrics = {
            "protocol": "style",
            "prompts": [prompt.plain for prompt in self.prompts],
            "num_seeds": self.num_seeds,
            "seed": self.seed,
            "overall": as_json(overall),
            "styles": {style.name: _told(style) | as_json(each[style.name]) for style in self.styles},
            "set_metrics": sets,
            "compared": {
                "rows": {"arm": "style"},
                "factors": list(FACTORS),
                "scores": ["s_txt", *leakage, "s_img"],
                "harmonic": list(SCORES),
                "frontiers": [["s_txt", image] for image in ("s_img", *leakage)],
            },
        }
        return metrics, tables

    def _requests(self, arm: str) -> list[Request]:
        return [
            Request(prompt.styled(style.style), seed, style=style.reference if arm == "style" else None)
            for style in self.styles
            for prompt, seed in self._places()
        ]

    def _by_style(self, paths: Sequence[Path]) -> dict[str, list[Path]]:
        remaining = iter(paths)
        return {style.name: list(islice(remaining, len(self._places()))) for style in self.styles}

    def _places(self) -> list[tuple[StylePrompt, int]]:
        return [(prompt, self.seed + seed) for prompt in self.prompts for seed in range(self.num_seeds)]

    def _rows(self, files: Mapping[str, Files]) -> list[Row]:
        scorer = StyleScorer(self.profile, self.prompts, self.styles, self.num_seeds)
        rows: list[Row] = []
        for style in self.styles:
            images: dict[str, Embedded] = {arm: scorer.embed(files[arm][style.name]) for arm in ARMS}
            for arm in ARMS:
                scores = scorer.scores(style, images[arm])
                if arm == "style":
                    scores |= scorer.against(style, images[arm], images["control"])
                rows += [
                    self._place(style, arm, index, files[arm][style.name][index])
                    | {key: float(scores[key][index]) if key in scores else "" for key in (*SCORES, *PAIRED, *GUARDS)}
                    for index in range(len(self._places()))
                ]
        return rows

    def _place(self, style: StyleReference, arm: str, index: int, file: Path) -> Row:
        prompt, seed = self._places()[index]
        category = {"category": prompt.category} if any(one.category for one in self.prompts) else {}
        return {"style": style.name, "arm": arm, "prompt": prompt.content, **category, "seed": seed, "file": file.name}

    def _samples(self, files: Files) -> list[Sequence[Path]]:
        """Images that differ in their seed alone, together."""
        every, size = [path for of in files.values() for path in of], self.num_seeds
        return [every[start : start + size] for start in range(0, len(every), size)]

    def _grid(self, files: Files) -> Image.Image:
        """A column per style: the reference, then the first prompts with the first seed."""
        blank = Image.new("RGB", (CELL, CELL), "white")
        cells = [load_image(style.path) if style.is_image else blank for style in self.styles]
        captions = [f"reference {style.name}" for style in self.styles]
        for index, prompt in enumerate(self.prompts[:SHOWN_PROMPTS]):
            cells += [load_image(files[style.name][index * self.num_seeds]) for style in self.styles]
            captions += [prompt.styled(style.style) for style in self.styles]
        return image_grid([ImageOps.contain(cell, (CELL, CELL)) for cell in cells], len(self.styles), captions)


def _check_distinct(what: str, names: Sequence[str]) -> None:
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        raise ValueError(f"{what} must differ, and {repeated[0]!r} is there twice")


def _of(rows: Sequence[Row], style: StyleReference) -> list[Row]:
    return [row for row in rows if row["style"] == style.name]


def _told(style: StyleReference) -> dict[str, str]:
    return {"descriptor": style.style, "content": style.content, "reference": style.reference.key()}
