"""How good the world's models are, each beside what it must beat or cannot exceed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn.functional import normalize

from src.data.files import write_text
from src.data.images import load_image
from src.data.pictures import image_grid
from src.data.request import Generator, Request
from src.data.world.datamodules import ATTRIBUTES, VALIDATION_START, attribute_words, to_pixel_values
from src.data.world.linear_code import LinearCode
from src.data.world.render import render
from src.data.world.scenes import Scene, attribute_scene, full_caption, sample_scene, subject_scene
from src.eval.draw import draw_missing, manifest_lines
from src.eval.encoders.network import ImageEncoder, TextImageEncoder
from src.eval.results.results import Table, provenance, write_results
from src.eval.statistics.bootstrap import bootstrap_mean
from src.eval.world.probe import Probe

BATCH = 32
PEAK = 2.0


def to_tensor(images: Sequence[Image.Image]) -> Tensor:
    """Images of one size to ``(N, 3, H, W)`` in [-1, 1]."""
    return torch.from_numpy(to_pixel_values(np.stack([np.asarray(image.convert("RGB")) for image in images])))


def psnr(restored: Tensor, pixel_values: Tensor) -> list[float]:
    """Peak signal-to-noise ratio of each image in decibel; values in [-1, 1], so the peak is 2."""
    error = (restored.clamp(-1, 1) - pixel_values).square().flatten(1).mean(1)
    return (10 * torch.log10(PEAK**2 / error)).tolist()


@torch.inference_mode()
def autoencoder_psnr(folder: str | Path, pixel_values: Tensor) -> list[float]:
    """PSNR of each image through the mode of a diffusers ``AutoencoderKL``'s posterior."""
    vae = AutoencoderKL.from_pretrained(folder, local_files_only=True).float().eval()
    restored = [vae.decode(vae.encode(batch).latent_dist.mode()).sample for batch in pixel_values.split(BATCH)]
    return psnr(torch.cat(restored), pixel_values)


def linear_psnr(path: str | Path, pixel_values: Tensor) -> list[float]:
    """PSNR of each image through the linear code of the same latent size."""
    code = LinearCode.load(path)
    return psnr(torch.from_numpy(code.decode(code.encode(pixel_values.numpy()))), pixel_values)


def retrieval_hits(images: Tensor, texts: Tensor, captions: Sequence[str], group: int) -> list[bool]:
    """Whether the nearest caption of each image, within its group, reads like its own.

    Args:
        images: Unit embeddings ``(N, D)``.
        texts: Unit embeddings of ``captions``.
        captions: One per image.
        group: Size of the consecutive groups that an image searches.

    Raises:
        ValueError: If the images do not fill their groups: chance would differ between them.
    """
    if len(images) % group:
        raise ValueError(f"{len(images)} images do not make groups of {group}")
    hits = []
    for start in range(0, len(images), group):
        nearest = (images[start : start + group] @ texts[start : start + group].T).argmax(1)
        hits += [captions[start + int(at)] == captions[start + index] for index, at in enumerate(nearest)]
    return hits


def reidentification_hits(embeddings: Tensor) -> list[bool]:
    """Whether each query's nearest gallery image shows the same individual.

    Args:
        embeddings: ``(subjects, views, D)``; the first view of each subject is the gallery, the others are queries.

    Returns:
        One answer per query, subject by subject.
    """
    unit = normalize(embeddings.float(), dim=-1)
    nearest = (unit[:, 1:] @ unit[:, 0].T).argmax(-1)
    return (nearest == torch.arange(len(unit))[:, None]).flatten().tolist()


GROUP = 100
CELL = 128
SHOWN = 40


@dataclass(frozen=True)
class Measure:
    """One line of the table: a number per item, and the same for what it is held against."""

    name: str
    unit: str
    values: Sequence[float]
    reference: str
    reference_values: Sequence[float]


class WorldQuality:
    """Autoencoder, generator and encoders of the world on held-out scenes, captions and subjects.

    Args:
        world_dir: Holds ``sd/vae`` and ``sd/linear_code.safetensors``.
        clip: Encoder whose retrieval is measured, and which measures the generator's.
        dino: Encoder whose re-identification is measured.
        probe: Reads attributes off samples.
        images_dir: Where samples go; what it holds is not drawn again.
        num_scenes: Held-out scenes that the autoencoder restores.
        num_captions: Full captions of held-out scenes among which ``clip`` retrieves, in groups of 100.
        num_scene_samples: The first of these captions that are also sampled, in groups of 100.
        num_attribute_samples: Captions that name object, colour, pattern and background, to be sampled and probed.
        num_subjects: Held-out individuals.
        num_views: Photos of each, the first being the gallery; up to 6, so that every query has another background.
        seed: Of the first sample, and of the bootstrap.

    Raises:
        ValueError: If captions do not fill groups of 100, or more of them are sampled than there are.
    """

    def __init__(
        self,
        world_dir: str,
        clip: TextImageEncoder,
        dino: ImageEncoder,
        probe: Probe,
        images_dir: str,
        num_scenes: int = 500,
        num_captions: int = 1000,
        num_scene_samples: int = 200,
        num_attribute_samples: int = 240,
        num_subjects: int = 50,
        num_views: int = 6,
        seed: int = 0,
    ) -> None:
        for name, number in {"num_captions": num_captions, "num_scene_samples": num_scene_samples}.items():
            if number % GROUP or number < GROUP:
                raise ValueError(f"{name}={number} does not make groups of {GROUP}; choose a multiple of {GROUP}")
        if num_scene_samples > num_captions:
            raise ValueError(f"num_scene_samples={num_scene_samples} exceeds num_captions={num_captions}")
        self.world_dir, self.clip, self.dino, self.probe = Path(world_dir), clip, dino, probe
        self.images_dir = Path(images_dir)
        self.num_scenes, self.num_captions, self.num_scene_samples = num_scenes, num_captions, num_scene_samples
        self.num_attribute_samples, self.num_subjects, self.num_views = num_attribute_samples, num_subjects, num_views
        self.seed = seed

    def requests(self, concepts: Sequence[object]) -> list[Request]:
        """Everything to draw: captions that name attributes, then full captions."""
        attributes = [scene.caption for scene in self._attribute_scenes()]
        scenes = [full_caption(scene) for scene in _held_out(sample_scene, self.num_scene_samples)]
        return _requests(attributes, self.seed) + _requests(scenes, self.seed)

    def check(self, concepts: Sequence[object]) -> None:
        """Load the encoders.

        Raises:
            ValueError: If weights are missing.
        """
        for encoder in (self.clip, self.dino):
            # It hashes the weights, and so loads them.
            _ = encoder.identity

    def shown(self, concepts: Sequence[object]) -> dict[str, Image.Image]:
        """No picture stands beside the images."""
        return {}

    def run(self, generator: Generator, concepts: Sequence[object], run_dir: str) -> dict[str, Any]:
        """Draw and measure; write ``metrics.json``, ``table.md``, ``per_image.csv``, ``report.html``, ``samples.png``.

        Returns:
            Per measure its mean, ``_interval`` (95%) and the same of its reference, and where the numbers come from.
        """
        self.check(concepts)
        requests = self.requests(concepts)
        paths = draw_missing(generator, requests, self.images_dir)
        write_text(Path(run_dir) / "images.jsonl", manifest_lines(requests, paths))
        samples = [load_image(path) for path in paths]
        attribute_samples, scene_samples = samples[: self.num_attribute_samples], samples[self.num_attribute_samples :]
        scenes = _held_out(sample_scene, max(self.num_scenes, self.num_captions))
        images = [render(scene) for scene in scenes]
        measures = [
            self._reconstruction(images[: self.num_scenes]),
            *self._retrieval(scenes[: self.num_captions], images[: self.num_captions], scene_samples),
            *self._attributes(self._attribute_scenes(), attribute_samples),
            self._reidentification(),
        ]
        captions = [request.prompt for request in requests]
        return self._write(run_dir, measures, _picture(attribute_samples, scene_samples, captions))

    def _attribute_scenes(self) -> list[Scene]:
        return _held_out(attribute_scene, self.num_attribute_samples)

    def _reconstruction(self, images: list[Image.Image]) -> Measure:
        pixel_values = to_tensor(images)
        values = autoencoder_psnr(self.world_dir / "sd" / "vae", pixel_values)
        linear = linear_psnr(self.world_dir / "sd" / "linear_code.safetensors", pixel_values)
        return Measure("autoencoder_psnr", "dB", values, "linear code of the same latent size", linear)

    def _retrieval(self, scenes: list[Scene], images: list[Image.Image], samples: list[Image.Image]) -> list[Measure]:
        """On renders, the encoder is on trial; on samples of the first of the same captions, the generator."""
        captions = [full_caption(scene) for scene in scenes]
        texts = self.clip.encode_texts(captions)
        real = retrieval_hits(self.clip.encode_images(images), texts, captions, GROUP)
        number = len(samples)
        made = retrieval_hits(self.clip.encode_images(samples), texts[:number], captions[:number], GROUP)
        chance = [1 / GROUP] * len(real)
        return [
            Measure("clip_recall_at_1", "share", real, f"chance among {GROUP}", chance),
            Measure("sample_recall_at_1", "share", made, "renders of the same captions", real[:number]),
        ]

    def _attributes(self, scenes: list[Scene], samples: list[Image.Image]) -> list[Measure]:
        asked = [attribute_words(scene) for scene in scenes]
        on_samples, on_renders = self.probe.read(samples), self.probe.read([render(scene) for scene in scenes])

        def right(answers: Mapping[str, list[str]], name: str) -> list[bool]:
            return [answer == words[name] for answer, words in zip(answers[name], asked, strict=True)]

        reference = "renders of the same captions"
        return [
            Measure(f"sample_{name}", "share", right(on_samples, name), reference, right(on_renders, name))
            for name in ATTRIBUTES
        ]

    def _reidentification(self) -> Measure:
        views = [subject_scene(index, view) for index in range(self.num_subjects) for view in range(self.num_views)]
        images = [render(view) for view in views]
        shape = (self.num_subjects, self.num_views, -1)
        hits = reidentification_hits(self.dino.encode_images(images).reshape(shape))
        raw = reidentification_hits(to_tensor(images).reshape(shape))
        return Measure("dino_reidentification", "share", hits, "cosine of raw pixels", raw)

    def _write(self, run_dir: str, measures: Sequence[Measure], picture: Image.Image) -> dict[str, Any]:
        numbers: dict[str, Any] = {}
        lines = []
        for measure in measures:
            cells = [measure.name, measure.unit, str(len(measure.values))]
            for suffix, values in {"": measure.values, "_reference": measure.reference_values}.items():
                interval = bootstrap_mean([float(value) for value in values], seed=self.seed)
                numbers[f"{measure.name}{suffix}"] = interval.mean
                numbers[f"{measure.name}{suffix}_interval"] = [interval.low, interval.high]
                cells.append(str(interval))
            lines.append([*cells, measure.reference])
        columns = ("measure", "unit", "items", "mean [95%]", "reference [95%]", "what the reference is")
        tables = [Table("Quality of the world, held-out scenes", columns, lines)]
        metrics = {
            "protocol": "world_quality",
            "encoders": {"clip": self.clip.identity, "dino": self.dino.identity},
            "seed": self.seed,
            **numbers,
            **provenance(),
        }
        write_results(run_dir, "Quality of the world", metrics, tables, _rows(measures), {"samples": picture})
        return metrics


def _held_out(draw: Any, number: int) -> list[Scene]:
    return [draw(VALIDATION_START + index) for index in range(number)]


def _requests(prompts: Sequence[str], seed: int) -> list[Request]:
    return [Request(prompt, seed + index) for index, prompt in enumerate(prompts)]


def _rows(measures: Sequence[Measure]) -> list[dict[str, Any]]:
    return [
        {"measure": measure.name, "item": item, "value": float(value), "reference": float(reference)}
        for measure in measures
        for item, (value, reference) in enumerate(zip(measure.values, measure.reference_values, strict=True))
    ]


def _picture(first: list[Image.Image], second: list[Image.Image], captions: list[str]) -> Image.Image:
    """The start of both sets of samples under their captions."""
    half = SHOWN // 2
    images = [ImageOps.contain(image, (CELL, CELL)) for image in (*first[:half], *second[:half])]
    return image_grid(images, 8, [*captions[: len(first[:half])], *captions[len(first) :][:half]])
