"""How well a generator follows captions that take more and more reading, by the ground truth of the world."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from src.data.images import load_image
from src.data.pictures import image_grid
from src.data.request import Request
from src.data.whole_file import write_text
from src.data.world.caption_tests import caption_tests
from src.data.world.render import render
from src.eval.caption_scores import CaptionScorer
from src.eval.caption_summary import ALL, Summary, kind_tables, summarise
from src.eval.concept_summary import as_json
from src.eval.manifest import IdentifiedGenerator, draw_missing, manifest_lines
from src.eval.probe import Probe
from src.eval.profile import Profile
from src.eval.results import provenance, write_results

LOSS = "denoising_loss"
WORDINGS = {"own": "the caption of the kind", "short": "the plainest caption of the same scene"}
"""What a generator is told; scores do not depend on it."""
SHOWN = 8
CELL = 96


class CaptionProtocol:
    """Held-out captions, short, long and compositional, drawn once each and held against their scenes.

    Scores are those of ``CaptionScorer`` and, where the generator has ``denoising_errors``, ``denoising_loss``: its
    loss on renders of the scenes, the lower, the better. Ceiling: the same scores of these renders. Chance: of renders
    of the next scene of the kind. A generator whose text encoder takes less than a caption has ``readable(prompt)`` and
    is given what it can read; the share of words is reported.

    Args:
        kinds: Keys of ``caption_tests.KINDS``.
        num_captions: Of each kind.
        num_seeds: Images per caption.
        profile: Its CLIP and scale.
        probe: Reads objects.
        images_dir: Where the images go; what it holds is not drawn again.
        wording: What the generator is told, ``own`` or ``short``: with the short caption of every scene, a base model
            shows what it can draw where nothing has to be understood.
        seed: Of the first image, of the loss's noise and of the bootstrap; every image has its own.

    Raises:
        ValueError: If there is nothing to draw, or a kind or the wording is unknown.
    """

    def __init__(
        self,
        kinds: Sequence[str],
        num_captions: int,
        num_seeds: int,
        profile: Profile,
        probe: Probe,
        images_dir: str,
        wording: str = "own",
        seed: int = 0,
    ) -> None:
        if wording not in WORDINGS:
            raise ValueError(f"wording is {wording!r}; choose one of {', '.join(WORDINGS)}")
        if num_seeds < 1:
            raise ValueError(f"need at least one seed, got {num_seeds}")
        self.tests = [test for test in caption_tests(kinds, num_captions) for _ in range(num_seeds)]
        self.told = [test.caption if wording == "own" else test.short for test in self.tests]
        self.seeds = [seed + at for at in range(len(self.tests))]
        self.profile, self.scorer, self.images_dir = profile, CaptionScorer(profile, probe), Path(images_dir)
        self.num_captions, self.num_seeds, self.wording, self.seed = num_captions, num_seeds, wording, seed

    def requests(self, concepts: Sequence[object] = ()) -> list[Request]:
        """Every caption with every of its seeds, kind by kind."""
        return [Request(told, seed, truncate=True) for told, seed in zip(self.told, self.seeds, strict=True)]

    def check(self, concepts: Sequence[object]) -> None:
        """Refuse what cannot be scored before anything is drawn: the encoders' weights may not be there."""
        self.profile.identity()

    def shown(self, concepts: Sequence[object]) -> dict[str, Image.Image]:
        """No picture stands beside the images."""
        return {}

    def run(self, generator: IdentifiedGenerator, concepts: Sequence[object], run_dir: str) -> dict[str, Any]:
        """Generate, score, write ``metrics.json``, tables, ``images.jsonl``, ``report.html`` and a grid."""
        self.check(concepts)
        requests = self.requests()
        files = draw_missing(generator, requests, self.images_dir)
        write_text(Path(run_dir) / "images.jsonl", manifest_lines(requests, files))
        images, renders = [load_image(path) for path in files], [render(test.scene) for test in self.tests]
        arms = {"drawn": images, "ceiling": renders, "chance": [renders[at] for at in self._next_of_kind()]}
        scores = {arm: self.scorer(self.tests, of) for arm, of in arms.items()}
        read = [getattr(generator, "readable", str)(told) for told in self.told]
        scores["drawn"] |= self._losses(generator, renders, read)
        summary = {arm: summarise(self.tests, of, self.seed) for arm, of in scores.items()}
        shares = [len(ours.split()) / len(told.split()) for ours, told in zip(read, self.told, strict=True)]
        tables = kind_tables(self.tests, self.told, shares, summary, self.profile.name)
        rows = self._rows(files, {"read": shares, **scores["drawn"]})
        metrics = self._metrics(summary) | {"generator": generator.identity()} | provenance()
        write_results(run_dir, "Captions", metrics, tables, rows, {"grid": self._grid(images, renders)})
        return metrics

    def _next_of_kind(self) -> list[int]:
        """Of each image the place of one of the next caption of its kind, of the last caption that of the first."""
        each = self.num_captions * self.num_seeds
        return [at // each * each + (at + self.num_seeds) % each for at in range(len(self.tests))]

    def _losses(
        self, generator: IdentifiedGenerator, renders: Sequence[Image.Image], read: Sequence[str]
    ) -> dict[str, list[float]]:
        """Models that do not denoise have none."""
        measure = getattr(generator, "denoising_errors", None)
        return {} if measure is None else {LOSS: measure(renders, read, self.seeds)}

    def _rows(self, files: Sequence[Path], columns: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
        return [
            {"kind": test.kind, "prompt": test.caption, "seed": seed, "file": path.name}
            | {name: values[at] for name, values in columns.items()}
            for at, (test, seed, path) in enumerate(zip(self.tests, self.seeds, files, strict=True))
        ]

    def _metrics(self, summary: Mapping[str, Summary]) -> dict[str, Any]:
        scores = list(summary["drawn"][ALL])
        return {
            "protocol": "captions",
            "wording": self.wording,
            "num_images": len(self.tests),
            "seed": self.seed,
            **self.profile.identity(),
            "overall": as_json(summary["drawn"]),
            "ceiling": as_json(summary["ceiling"]),
            "chance": as_json(summary["chance"]),
            "compared": {
                "rows": {},
                "factors": ["prompt"],
                "by": "kind",
                "scores": scores,
                "frontiers": [("clip_t", "bound"), *([(LOSS, "bound")] if LOSS in scores else [])],
            },
        }

    def _grid(self, images: Sequence[Image.Image], renders: Sequence[Image.Image]) -> Image.Image:
        """Of each kind a row of images over the scenes that they were to show."""
        cells, captions = [], []
        for kind in dict.fromkeys(test.kind for test in self.tests):
            shown = [at for at, test in enumerate(self.tests) if test.kind == kind][:SHOWN]
            for of in (images, renders):
                cells += [ImageOps.contain(of[at], (CELL, CELL)) for at in shown]
            captions += [self.told[at] for at in shown] + ["the scene" for _ in shown]
        return image_grid(cells, min(SHOWN, self.num_captions * self.num_seeds), captions)
