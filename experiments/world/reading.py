"""Where does the UNet read an object: in its noun's row, or after it? Does it know whose colour is whose?

``python -m experiments.world.reading [FOLDER]``. Held-out photos are denoised under captions in which one word is
wrong, in all rows of the text or in some: what the error gains is what the model reads there. Four noise levels.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import count, islice

import torch
from PIL import Image
from torch import Tensor

from src.data.prompts import tokenize
from src.data.world.datamodules import VALIDATION_START
from src.data.world.render import render
from src.data.world.scenes import Scene, attribute_scene, caption_order, full_caption, named_pair_scene
from src.data.world.vocabulary import COLORS, NOUNS, Look
from src.eval.results.results import Table
from src.eval.statistics.bootstrap import bootstrap_ratio
from src.modules.backbones.base import Text
from src.modules.backbones.denoising import denoising_errors
from src.modules.backbones.unet import UNetBackbone

NUM_SCENES = 256
WORDS = {"noun": NOUNS, "color": tuple(COLORS)}


class Denoised:
    """Scenes, and how well a backbone denoises them under changed captions."""

    def __init__(self, backbone: UNetBackbone, scenes: list[Scene]) -> None:
        self.backbone, self.scenes = backbone, scenes
        self.images: list[Image.Image] = [render(scene) for scene in scenes]
        self.ids = self.tokens(lambda look: look)
        self.text = self.encoded(self.ids)
        self.right = self.errors(self.text)

    def tokens(self, changed: Callable[[Look], Look]) -> Tensor:
        """Token ids of the captions of other looks in the same places."""
        looks = [tuple(replace(o, look=changed(o.look)) for o in scene.objects) for scene in self.scenes]
        captions = [full_caption(replace(s, objects=objects)) for s, objects in zip(self.scenes, looks, strict=True)]
        return tokenize(self.backbone.tokenizers[0], captions)

    def encoded(self, ids: Tensor) -> Tensor:
        """Text states."""
        with torch.no_grad():
            return self.backbone.encode_ids([ids]).prompt_embeds

    def errors(self, text: Tensor) -> list[float]:
        """One per scene."""
        seeds = range(len(self.scenes))
        return denoising_errors(self.backbone, self.images, Text(text), seeds, self.backbone.resolution)

    def gain(self, text: Tensor) -> list[float]:
        """What a changed text costs."""
        return [wrong - right for wrong, right in zip(self.errors(text), self.right, strict=True)]


def following(kind: str) -> Callable[[Look], Look]:
    """The look with the next noun or colour of the vocabulary."""
    words = WORDS[kind]
    return lambda look: replace(look, **{kind: words[(words.index(getattr(look, kind)) + 1) % len(words)]})


def where_read(photos: Denoised, kind: str) -> list[list[str]]:
    """One line for all rows, for the noun's row and for those after it."""
    ids = photos.tokens(following(kind))
    wrong, at = photos.encoded(ids), torch.arange(ids.shape[1])
    noun = (photos.ids != photos.tokens(following("noun"))).float().argmax(1)[:, None]
    rows = {"all": at >= 0, "the noun's": at == noun, "after the noun": at > noun}
    gains = {
        name: photos.gain(torch.where(mask.expand(ids.shape)[..., None], wrong, photos.text))
        for name, mask in rows.items()
    }
    return [_line(f"another {kind}", name, gain, gains["all"]) for name, gain in gains.items()]


def whose(pairs: Denoised, kind: str) -> list[list[str]]:
    """What it costs to give each of two objects the other's word, beside words that neither has."""
    ids, other = pairs.ids, pairs.tokens(following(kind))
    swapped = ids.clone()
    for row, wrong in enumerate(other):
        places = (ids[row] != wrong).nonzero()[:, 0]
        swapped[row, places] = ids[row, places.flip(0)]
    foreign = pairs.gain(pairs.encoded(other))
    own = pairs.gain(pairs.encoded(swapped))
    return [
        _line(f"two objects, other {kind}s", "all", foreign, foreign),
        _line(f"two objects, {kind}s swapped", "all", own, foreign),
    ]


def apart(scene: Scene) -> bool:
    """Whether two objects differ in noun and colour, by more than the word that stands in for each."""
    first, second = (placed.look for placed in caption_order(scene))
    return all(
        len({getattr(look, kind) for look in (first, second)} | {getattr(following(kind)(first), kind)}) == 3
        and getattr(following(kind)(second), kind) != getattr(first, kind)
        for kind in WORDS
    )


def _line(change: str, rows: str, gain: list[float], whole: list[float]) -> list[str]:
    return [change, rows, f"{sum(gain) / len(gain):.4f}", str(bootstrap_ratio(gain, whole))]


def main(path: str = "world/sd") -> None:
    """Print the table."""
    torch.set_num_threads(1)
    backbone = UNetBackbone.from_pretrained(path)
    photos = Denoised(backbone, [attribute_scene(VALIDATION_START + index) for index in range(NUM_SCENES)])
    scenes = (named_pair_scene(seed) for seed in count(VALIDATION_START))
    pairs = Denoised(backbone, list(islice((s for s in scenes if s.style == "photo" and apart(s)), NUM_SCENES)))
    lines = [line for kind in WORDS for line in where_read(photos, kind)]
    lines += [line for kind in WORDS for line in whose(pairs, kind)]
    columns = ["changed in the caption", "in which rows", "denoising error gained", "share [95%]"]
    print(Table(f"Reading of {path}, {NUM_SCENES} photos and {NUM_SCENES} pairs", columns, lines).markdown())


if __name__ == "__main__":
    main(*sys.argv[1:])
