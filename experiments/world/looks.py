"""What the judge reads right of perfect pictures, attribute by attribute: the ceiling of what it can say of drawn ones.

``python -m experiments.world.looks``. Held-out photos as they are and through the autoencoder, through which all drawn
images come; objects of pairs in their halves; the photos of the twelve subjects.
"""

import json
from collections.abc import Sequence
from itertools import count, islice
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image

from src.data.files import write_text
from src.data.world.datamodules import VALIDATION_START, to_pixel_values
from src.data.world.export import NUM_PHOTOS, SUBJECTS
from src.data.world.render import render
from src.data.world.scenes import attribute_scene, sample_scene, subject_scene
from src.data.world.vocabulary import Look, subject
from src.eval.protocols.layout import LEFT, RIGHT, WHOLE, Box
from src.eval.results.results import Table, provenance
from src.eval.statistics.bootstrap import Interval, bootstrap_mean
from src.eval.world.identity import LookJudge, words
from src.eval.world.probe import Probe

RESULTS = Path(__file__).parent / "results"
NUM_SCENES = 200
COMMAND = "python -m experiments.world.looks"
Shown = Sequence[tuple[Image.Image, Box, Look]]


def restored(images: Sequence[Image.Image]) -> list[Image.Image]:
    """Pass images through the autoencoder of ``world/sd``."""
    vae = AutoencoderKL.from_pretrained("world/sd/vae", local_files_only=True).eval()
    found = []
    with torch.inference_mode():
        for start in range(0, len(images), 50):
            pixel_values = to_pixel_values(np.stack([np.asarray(one) for one in images[start : start + 50]]))
            decoded = vae.decode(vae.encode(torch.from_numpy(pixel_values)).latent_dist.mode()).sample
            pixels = ((decoded.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
            found += [Image.fromarray(one) for one in pixels]
    return found


def pictures() -> dict[str, Shown]:
    """Held-out scenes and subjects, in the ways in which the judge sees them."""
    scenes = [attribute_scene(VALIDATION_START + index) for index in range(NUM_SCENES)]
    photos, looks = [render(scene) for scene in scenes], [scene.objects[0].look for scene in scenes]
    drawn = (sample_scene(seed, 2, "photo") for seed in count(VALIDATION_START))
    pairs = list(islice((scene for scene in drawn if scene.relation in ("left of", "right of")), NUM_SCENES // 2))
    both = [render(scene) for scene in pairs]

    def halves(images: Sequence[Image.Image]) -> Shown:
        placed = [(image, one) for image, scene in zip(images, pairs, strict=True) for one in scene.objects]
        return [(image, LEFT if one.x < 0.5 else RIGHT, one.look) for image, one in placed]

    def whole(images: Sequence[Image.Image]) -> Shown:
        return [(image, WHOLE, look) for image, look in zip(images, looks, strict=True)]

    known = [(noun, index, view) for noun, index in SUBJECTS.values() for view in range(NUM_PHOTOS)]
    return {
        "photos": whole(photos),
        "photos, through the autoencoder": whole(restored(photos)),
        "halves of pairs": halves(both),
        "halves of pairs, through the autoencoder": halves(restored(both)),
        "photos of the twelve subjects": [
            (render(subject_scene(index, view, noun)), WHOLE, subject(index, noun)) for noun, index, view in known
        ],
    }


def right(judge: LookJudge, shown: Shown) -> dict[str, Interval]:
    """By attribute, the share of pictures of which it is read right, and of those of which all are."""
    read = judge.looks([image for image, _, _ in shown], [box for _, box, _ in shown])
    pairs = [({} if seen is None else words(seen), words(look)) for seen, (_, _, look) in zip(read, shown, strict=True)]
    # The colour of a marking counts where there is one.
    found = {
        name: [
            float(seen.get(name) == look[name]) for seen, look in pairs if look[name] is not None or name == "marking"
        ]
        for name in judge.attributes
    }
    found["all"] = [float(seen == look) for seen, look in pairs]
    return {name: bootstrap_mean(values) for name, values in found.items()}


def main() -> None:
    """Write the table and its figures."""
    torch.set_num_threads(1)
    judge = LookJudge(Probe("local-dir:world/probe"))
    found = {kind: right(judge, shown) for kind, shown in pictures().items()}
    columns = [*judge.attributes, "all"]
    lines = [[kind, *(str(of[name]) for name in columns)] for kind, of in found.items()]
    title = "What the judge of looks reads right of perfect pictures, share [95%]"
    write_text(RESULTS / "looks.md", Table(title, ["", *(one.replace("_", " ") for one in columns)], lines).markdown())
    overall = {kind: {name: one.as_dict() for name, one in of.items()} for kind, of in found.items()}
    record = {"overall": overall, **provenance(), "command": COMMAND}
    write_text(RESULTS / "looks.json", json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
