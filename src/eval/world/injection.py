"""How much of another prompt an image takes up: the studies of Fig. 2, 3 and 7 of arXiv 2507.04482."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from src.data.files import write_text
from src.data.images import load_image
from src.data.pictures import image_grid
from src.data.request import Generator, Request, TextStyle
from src.data.world.caption_tests import prompt_pairs
from src.eval.draw import draw_missing, manifest_lines
from src.eval.profile import Profile
from src.eval.results.results import Table, provenance, write_results
from src.eval.statistics.bootstrap import bootstrap_mean
from src.eval.world.probe import Probe

SCORES = ("clip_injected", "clip_base", "injected_object", "injected_color")
SHOWN = 32
COLUMNS = 8
CELL = 96


class InjectionProtocol:
    """Images of a base prompt into which a generator injects another prompt, in whatever way it does.

    Scores of an image: CLIP similarity to the injected and to the base prompt, and whether the probe, trained on ground
    truth, reads the injected prompt's object and its colour.

    Args:
        difference: In what the two prompts of a pair differ: ``object``, ``color`` or ``both``.
        num_pairs: Of prompts.
        num_seeds: Images per pair.
        profile: Its CLIP and scale.
        probe: Reads object and colour.
        images_dir: Where the images go; what it holds is not drawn again.
        seed: Of the pairs, of the first image of each and of the bootstrap.

    Raises:
        ValueError: If there is nothing to draw, or the difference is unknown.
    """

    def __init__(
        self,
        difference: str,
        num_pairs: int,
        num_seeds: int,
        profile: Profile,
        probe: Probe,
        images_dir: str,
        seed: int = 0,
    ) -> None:
        if num_pairs < 1 or num_seeds < 1:
            raise ValueError(f"need at least one pair and one seed, got {num_pairs} and {num_seeds}")
        pairs = prompt_pairs(difference, num_pairs, seed)
        self.places = [(pair, seed + number) for pair in pairs for number in range(num_seeds)]
        self.difference, self.profile, self.probe = difference, profile, probe
        self.images_dir, self.seed = Path(images_dir), seed

    def requests(self, concepts: Sequence[object] = ()) -> list[Request]:
        """The base prompt of each pair, its other prompt as the reference, seed by seed."""
        return [Request(pair.base, seed, style=TextStyle(pair.injected)) for pair, seed in self.places]

    def check(self, concepts: Sequence[object]) -> None:
        """Refuse what cannot be scored before anything is drawn: the encoders' weights may not be there."""
        self.profile.identity()

    def shown(self, concepts: Sequence[object]) -> dict[str, Image.Image]:
        """No picture stands beside the images."""
        return {}

    def run(self, generator: Generator, concepts: Sequence[object], run_dir: str) -> dict[str, Any]:
        """Generate, score, write ``metrics.json``, tables, ``images.jsonl``, ``report.html`` and a grid."""
        profile = self.profile.identity()
        requests = self.requests()
        files = draw_missing(generator, requests, self.images_dir)
        write_text(Path(run_dir) / "images.jsonl", manifest_lines(requests, files))
        images = [load_image(path) for path in files]
        scores = self._scores(images)
        rows = [
            {"prompt": f"{pair.base} | {pair.injected}", "seed": seed, "file": path.name}
            | {name: values[index] for name, values in scores.items()}
            for index, ((pair, seed), path) in enumerate(zip(self.places, files, strict=True))
        ]
        groups = [[row["prompt"] for row in rows]]
        overall = {name: bootstrap_mean(values, groups, self.seed) for name, values in scores.items()}
        metrics = {
            "protocol": "injection",
            "difference": self.difference,
            "num_images": len(rows),
            "seed": self.seed,
            "generator": generator.identity(),
            **profile,
            "overall": {name: found.as_dict() for name, found in overall.items()},
            "compared": {"rows": {}, "factors": ["prompt"], "scores": list(SCORES), "frontiers": [SCORES[2:]]},
            **provenance(),
        }
        title = f"{len(rows)} images, prompts differ in {self.difference}, mean [95%], profile {self.profile.name}"
        table = Table(title, ["", *SCORES], [["drawn", *(str(overall[name]) for name in SCORES)]])
        write_results(run_dir, "An injected prompt", metrics, [table], rows, {"grid": self._grid(images)})
        return metrics

    def _scores(self, images: Sequence[Image.Image]) -> dict[str, list[float]]:
        clip, pairs = self.profile.clip, [pair for pair, _ in self.places]
        embedded, read = clip.encode_images(images), self.probe.read(images)
        texts = {"clip_injected": [pair.injected for pair in pairs], "clip_base": [pair.base for pair in pairs]}
        similar = {
            name: self.profile.text_score(embedded, clip.encode_texts(text)).tolist() for name, text in texts.items()
        }
        objects = [float(word == pair.injected_object) for word, pair in zip(read["object"], pairs, strict=True)]
        colors = [float(word == pair.injected_color) for word, pair in zip(read["color"], pairs, strict=True)]
        return similar | {"injected_object": objects, "injected_color": colors}

    def _grid(self, images: Sequence[Image.Image]) -> Image.Image:
        step = max(1, len(images) // SHOWN)
        shown = range(0, min(len(images), step * SHOWN), step)
        cells = [ImageOps.contain(images[index], (CELL, CELL)) for index in shown]
        captions = [f"{self.places[index][0].base} + {self.places[index][0].injected}" for index in shown]
        return image_grid(cells, COLUMNS, captions)
