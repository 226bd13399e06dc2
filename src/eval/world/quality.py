"""How good the world's models are, each beside what it must beat or cannot exceed."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from src.data.images import Picture
from src.data.ranges import Count, Seed
from src.data.request import Generator, Request
from src.data.world.datamodules import ATTRIBUTES, VALIDATION_START, attribute_words, to_pixel_values
from src.data.world.families import EDITS, MEMBERS, found_in_family, member_cosines
from src.data.world.linear_code import LinearCode
from src.data.world.render import render
from src.data.world.scenes import (
    Scene,
    attribute_scene,
    family_scene,
    full_caption,
    nouns_and_place,
    sample_scene,
    subject_scene,
)
from src.data.world.vocabulary import HELD_OUT_STYLES
from src.eval.encoders.models import ImageEncoder, TextImageEncoder, read_ahead
from src.eval.grid import Grid
from src.eval.profile import Profile
from src.eval.protocols.base import Frame, Item, Protocol
from src.eval.results.results import Row, Table
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
def autoencoder_psnr(vae: AutoencoderKL, pixel_values: Tensor) -> list[float]:
    """PSNR of each image of a batch through the mode of an autoencoder's posterior."""
    return psnr(vae.decode(vae.encode(pixel_values).latent_dist.mode()).sample, pixel_values)


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
NUM_VIEWS = 6
"""Photos of each held-out individual; so many backgrounds are there that every query has another than the gallery."""
SHOWN = 20

RENDERS, PHOTOS = "renders of the same captions", "photos of the same scenes"
REFERENCES = {
    "autoencoder_psnr": ("dB", "linear code of the same latent size"),
    "clip_recall_at_1": ("share", f"chance among {GROUP}"),
    "clip_recall_in_styles": ("share", PHOTOS),
    **{f"clip_text_{style}": ("cosine", PHOTOS) for style in HELD_OUT_STYLES},
    "sample_recall_at_1": ("share", RENDERS),
    **{f"sample_{name}": ("share", RENDERS) for name in ATTRIBUTES},
    "dino_reidentification": ("share", "cosine of raw pixels"),
    "dino_hard_reidentification": ("share", "cosine of raw pixels"),
    "dino_same": ("cosine", "the nearest other member of the family"),
    **{f"dino_{name}": ("cosine", "the same individual") for name in EDITS},
}
"""By measure, its unit and what it is held against."""

Measured = tuple[Sequence[float], Sequence[float]]
"""One number per item, and the same for what the measure is held against."""


def reconstruction(folder: Path, pictures: Sequence[Picture]) -> Measured:
    """PSNR of each image through the autoencoder in a folder, and through its linear code."""
    vae = AutoencoderKL.from_pretrained(folder / "vae", local_files_only=True).float().eval()
    restored: list[float] = []
    linear: list[float] = []
    for pixel_values in map(to_tensor, read_ahead(lambda image: image, pictures, BATCH)):
        restored += autoencoder_psnr(vae, pixel_values)
        linear += linear_psnr(folder / "linear_code.safetensors", pixel_values)
    return restored, linear


def reidentification(dino: ImageEncoder, num_subjects: int) -> Measured:
    """Whether each photo finds its individual by DINO, and by raw pixels."""
    scenes = [subject_scene(at, view) for at in range(num_subjects) for view in range(NUM_VIEWS)]
    renders, shape = [partial(render, scene) for scene in scenes], (num_subjects, NUM_VIEWS, -1)
    hits = reidentification_hits(dino.encode_images(renders).reshape(shape))
    pixels = torch.cat([to_tensor(images).flatten(1) for images in read_ahead(lambda image: image, renders)])
    return hits, reidentification_hits(pixels.reshape(shape))


def styled_retrieval(clip: TextImageEncoder, scenes: Sequence[Scene]) -> dict[str, Measured]:
    """Retrieval and text score of scenes in held-out styles, which take turns, beside photos of the same scenes.

    No text names a style: what is drawn counts, not how. The text score is that of nouns and place, as prompts of
    ``protocol=style`` are, and has one measure for each style.
    """
    photos = [replace(scene, style="photo") for scene in scenes]
    styles = [list(HELD_OUT_STYLES)[at % len(HELD_OUT_STYLES)] for at in range(len(scenes))]
    styled = [replace(scene, style=style) for scene, style in zip(scenes, styles, strict=True)]
    captions = [full_caption(photo).removeprefix("a photo of ") for photo in photos]
    full, short = clip.encode_texts(captions), clip.encode_texts([nouns_and_place(photo) for photo in photos])
    embedded = [clip.encode_images([partial(render, scene) for scene in of]) for of in (styled, photos)]
    ours, theirs = ((images * short).sum(-1).tolist() for images in embedded)
    hits, reference = (retrieval_hits(images, full, captions, GROUP) for images in embedded)
    found: dict[str, Measured] = {"clip_recall_in_styles": (hits, reference)}
    for style in dict.fromkeys(styles):
        at = [place for place, name in enumerate(styles) if name == style]
        found[f"clip_text_{style}"] = ([ours[place] for place in at], [theirs[place] for place in at])
    return found


def likeness(dino: ImageEncoder, num_families: int) -> dict[str, Measured]:
    """How near photos of individuals are to themselves and to those that differ in one thing, family by family."""
    photos = range(len(MEMBERS) + NUM_VIEWS - 1)
    renders = [partial(render, family_scene(index, photo)) for index in range(num_families) for photo in photos]
    shape = (num_families, len(photos), -1)
    cosines = member_cosines(dino.encode_images(renders).reshape(shape))
    pixels = torch.cat([to_tensor(images).flatten(1) for images in read_ahead(lambda image: image, renders)])
    hits, raw = (found_in_family(each).double().mean(1) for each in (cosines, member_cosines(pixels.reshape(shape))))
    same, *others = cosines.double().mean(1).unbind(1)
    nearest = cosines[..., 1:].amax(-1).double().mean(1)
    return {
        "dino_hard_reidentification": (hits.tolist(), raw.tolist()),
        "dino_same": (same.tolist(), nearest.tolist()),
        **{f"dino_{name}": (each.tolist(), same.tolist()) for name, each in zip(EDITS, others, strict=True)},
    }


class WorldQuality(Protocol[Scene]):
    """Autoencoder, generator and encoders of the world on held-out scenes, captions and subjects.

    Args:
        world_dir: Holds ``sd/vae`` and ``sd/linear_code.safetensors``.
        profile: Its CLIP's retrieval is measured, and measures the generator's; its DINO's re-identification is.
        probe: Reads attributes off samples.
        images_dir: Where samples go; what it holds is not drawn again.
        num_scenes: Held-out scenes that the autoencoder restores.
        num_captions: Full captions of held-out scenes among which CLIP retrieves, in groups of 100.
        num_scene_samples: The first of these captions that are also sampled, in groups of 100.
        num_attribute_samples: Captions that name object, colour, pattern and background, to be sampled and probed.
        num_subjects: Held-out individuals, with ``NUM_VIEWS`` photos each, the first being the gallery; and held-out
            families, each an individual and those that differ from it in one thing.
        seed: Seeds the first sample, and the bootstrap.

    Raises:
        ValueError: If captions do not fill groups of 100, or more of them are sampled than there are.
    """

    name, title = "world_quality", "Quality of the world"
    scores = ("value", "reference")

    def __init__(
        self,
        world_dir: str,
        profile: Profile,
        probe: Probe,
        images_dir: str,
        num_scenes: Count = 500,
        num_captions: Count = 1000,
        num_scene_samples: Count = 200,
        num_attribute_samples: Count = 240,
        num_subjects: Count = 50,
        seed: Seed = 0,
    ) -> None:
        super().__init__(profile, images_dir, seed)
        for name, number in {"num_captions": num_captions, "num_scene_samples": num_scene_samples}.items():
            if number % GROUP or number < GROUP:
                raise ValueError(f"{name}={number} does not make groups of {GROUP}; choose a multiple of {GROUP}")
        if num_scene_samples > num_captions:
            raise ValueError(f"num_scene_samples={num_scene_samples} exceeds num_captions={num_captions}")
        self.world_dir, self.probe = Path(world_dir), probe
        self.num_scenes, self.num_captions, self.num_scene_samples = num_scenes, num_captions, num_scene_samples
        self.num_attribute_samples, self.num_subjects = num_attribute_samples, num_subjects

    def items(self, concepts: Sequence[object] = ()) -> list[Item[Scene]]:
        """Captions that name attributes, then full captions."""
        attributes = _held_out(attribute_scene, self.num_attribute_samples)
        scenes = _held_out(sample_scene, self.num_scene_samples)
        named = _items("attributes", attributes, [scene.caption for scene in attributes], self.seed)
        return named + _items("scenes", scenes, [full_caption(scene) for scene in scenes], self.seed)

    def score(self, frame: Frame[Scene], generator: Generator) -> list[Row]:
        """Lines of all measures, item by item: of samples, and of renders that no generator drew."""
        scenes = _held_out(sample_scene, max(self.num_scenes, self.num_captions))
        renders = [partial(render, scene) for scene in scenes]
        measured = {
            "autoencoder_psnr": reconstruction(self.world_dir / "sd", renders[: self.num_scenes]),
            **styled_retrieval(self.profile.clip, scenes[: self.num_captions]),
            **self._retrieval(scenes[: self.num_captions], renders, frame.part(drawn="scenes").paths),
            **self._attributes(frame.part(drawn="attributes")),
            "dino_reidentification": reidentification(self.profile.dino, self.num_subjects),
            **likeness(self.profile.dino, self.num_subjects),
        }
        return [
            {"measure": name, "item": item, "value": float(value), "reference": float(reference)}
            for name, values in measured.items()
            for item, (value, reference) in enumerate(zip(*values, strict=True))
        ]

    def _retrieval(
        self, scenes: Sequence[Scene], renders: Sequence[Picture], samples: Sequence[Picture]
    ) -> dict[str, Measured]:
        """On renders, the encoder is on trial; on samples of the first of the same captions, the generator."""
        clip, captions, number = self.profile.clip, [full_caption(scene) for scene in scenes], len(samples)
        texts = clip.encode_texts(captions)
        real = retrieval_hits(clip.encode_images(renders[: len(scenes)]), texts, captions, GROUP)
        made = retrieval_hits(clip.encode_images(samples), texts[:number], captions[:number], GROUP)
        chance = [1 / GROUP] * len(real)
        return {"clip_recall_at_1": (real, chance), "sample_recall_at_1": (made, real[:number])}

    def _attributes(self, frame: Frame[Scene]) -> dict[str, Measured]:
        asked = [attribute_words(scene) for scene in frame.targets]
        read = {
            "samples": self.probe.read(frame.paths),
            "renders": self.probe.read([partial(render, scene) for scene in frame.targets]),
        }

        def right(kind: str, name: str) -> list[bool]:
            return [answer == words[name] for answer, words in zip(read[kind][name], asked, strict=True)]

        return {f"sample_{name}": (right("samples", name), right("renders", name)) for name in ATTRIBUTES}

    def summarise(self, frame: Frame[Scene]) -> dict[str, Any]:
        """By measure: the number of items, its interval, and that of its reference."""
        found: dict[str, Any] = {}
        for name in REFERENCES:
            rows = [row for row in frame.rows if row["measure"] == name]
            intervals = [bootstrap_mean([row[column] for row in rows], seed=self.seed) for column in self.scores]
            found[name] = (len(rows), *intervals)
        return found

    def identity(self, generator: Generator) -> dict[str, Any]:
        """The encoders: no rule of the profile decides a number, and the generator is one of those on trial."""
        return {"encoders": self.profile.identity()["encoders"]}

    def metrics(self, frame: Frame[Scene]) -> dict[str, Any]:
        """Per measure its mean, ``_interval`` (95%) and the same of its reference."""
        numbers: dict[str, Any] = {}
        for name, (_, *intervals) in frame.summary.items():
            for suffix, interval in zip(("", "_reference"), intervals, strict=True):
                numbers[f"{name}{suffix}"] = interval.mean
                numbers[f"{name}{suffix}_interval"] = [interval.low, interval.high]
        return numbers

    def compared(self, frame: Frame[Scene]) -> dict[str, Any]:
        """A sweep can compare nothing: a line is no single image."""
        return {}

    def tables(self, frame: Frame[Scene]) -> list[Table]:
        """One line per measure."""
        lines = []
        for name, (number, *intervals) in frame.summary.items():
            unit, reference = REFERENCES[name]
            lines.append([name, unit, str(number), *map(str, intervals), reference])
        columns = ("measure", "unit", "items", "mean [95%]", "reference [95%]", "what the reference is")
        return [Table("Quality of the world, held-out scenes", columns, lines)]

    def grids(self, frame: Frame[Scene]) -> dict[str, Grid]:
        """The start of both sets of samples under their captions."""
        starts = [Frame(part.items[:SHOWN], part.paths[:SHOWN]) for part in frame.parts("drawn")]
        captions = [item.request.prompt for start in starts for item in start.items]
        return {"samples": self.grid([path for start in starts for path in start.paths], 8, captions)}


def _held_out(draw: Callable[[int], Scene], number: int) -> list[Scene]:
    return [draw(VALIDATION_START + index) for index in range(number)]


def _items(drawn: str, scenes: Sequence[Scene], captions: Sequence[str], seed: int) -> list[Item[Scene]]:
    numbered = enumerate(zip(scenes, captions, strict=True), seed)
    return [Item(Request(caption, at), {"drawn": drawn}, scene) for at, (scene, caption) in numbered]
