"""Three to five photos of one subject: the augmented views that a method learns from, and their order."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import lightning as L
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from src.data.first_looks import ClassNoun, ImageFolder
from src.data.identity import files_digest
from src.data.images import find_images, load_folder
from src.data.known_words import KnownWords
from src.data.order import Draw, StepBatchSampler, share_of
from src.data.ranges import BatchSize, Count, Number, Seed, Share1, Side

LATENT_CELL = 8
"""Side of a latent cell in pixels, in the autoencoders of Stable Diffusion and of the world."""


@dataclass(frozen=True)
class View:
    """One augmented photo, uint8 ``(H, W, 3)``, and a mask of the latent cells that the loss counts, ``(H/8, W/8)``."""

    pixels: np.ndarray
    mask: np.ndarray


@dataclass(frozen=True)
class Zoom:
    """Scale augmentation of Custom Diffusion, as LaTexBlend uses it.

    A photo is first cropped to a square at a random place and flipped with probability 1/2. With probability 2/3 its
    scale is drawn from ``min_scale`` to 1, else from 1.2 to 1.4. Below 0.6 the photo is pasted at a random place on
    grey, and only cells inside it count; from 0.6 to 1 it fills the image; above 1 a random crop is taken.
    """

    min_scale: Share1 = 1 / 3
    flip: bool = True

    def __call__(self, image: Image.Image, size: int, rng: np.random.Generator) -> View:
        """Draw one view of ``size`` x ``size`` pixels."""
        image = _random_square(image, rng)
        if self.flip and rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        scale = rng.uniform(self.min_scale, 1.0) if rng.random() < 2 / 3 else rng.uniform(1.2, 1.4)
        cells = size // LATENT_CELL
        if 0.6 <= scale <= 1:
            return View(_resized(image, size), np.ones((cells, cells), dtype=np.float32))
        side = 2 * round(scale * size / 2)
        x, y = (int(rng.integers(0, abs(size - side) + 1)) for _ in range(2))
        if scale > 1:
            crop = _resized(image, side)[y : y + size, x : x + size]
            return View(crop, np.ones((cells, cells), dtype=np.float32))
        canvas = np.full((size, size, 3), 127, dtype=np.uint8)
        canvas[y : y + side, x : x + side] = _resized(image, side)
        mask = np.zeros((cells, cells), dtype=np.float32)
        # Cells at the edge of the photo do not count, because they also see the grey.
        first_x, first_y = -(-x // LATENT_CELL) + 1, -(-y // LATENT_CELL) + 1
        last_x, last_y = (x + side) // LATENT_CELL - 1, (y + side) // LATENT_CELL - 1
        mask[first_y:last_y, first_x:last_x] = 1
        return View(canvas, mask)


def _random_square(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    side = min(image.size)
    x, y = (int(rng.integers(0, length - side + 1)) for length in image.size)
    return image.crop((x, y, x + side, y + side))


def _resized(image: Image.Image, side: int) -> np.ndarray:
    return np.asarray(image.resize((side, side), Image.Resampling.LANCZOS))


class ConceptData(L.LightningDataModule):
    """The data of one subject for one training.

    The constructor reads and checks the photos, so that a wrong folder is reported before a model is loaded.

    Args:
        instance_dir: Folder of 3 to 5 photos (1 is enough to run).
        class_noun: What the subject is, such as ``dog``.
        resolution: Side of the views in pixels, a multiple of 8.
        batch_size: Instance images per step and rank; as many prior images are added.
        num_views: Number of augmented views, drawn and encoded once; a multiple of the number of photos is best.
        zoom: The augmentation; None to use the photos as they are.
        class_dir: Folder of other members of the class; None to let the backbone draw them. Fewer images than
            ``num_class_images`` are used with a warning.
        num_class_images: Number of images of other members of the class.
        num_val: Number of validation draws, the same every time; 0 for no validation.
        seed: Seed of the views and their order.

    Raises:
        ValueError: If a folder holds no usable image, or the resolution is not a multiple of 8.
    """

    # Photos are identified by their content, not by their folder.
    incidental: ClassVar[tuple[str, ...]] = ("instance_dir", "class_dir", "num_val")

    @staticmethod
    def content(settings: Mapping[str, Any]) -> dict[str, str]:
        """Hash the photos that these arguments name, whatever the files are called."""
        given = {name: settings.get(name) for name in ("instance_dir", "class_dir")}
        return {name: files_digest(find_images(path)) for name, path in given.items() if path}

    def __init__(
        self,
        instance_dir: ImageFolder,
        class_noun: ClassNoun,
        resolution: Side = 512,
        batch_size: BatchSize = 1,
        num_views: Count = 100,
        zoom: Zoom | None = None,
        class_dir: ImageFolder | None = None,
        num_class_images: Count = 100,
        num_val: Number = 16,
        seed: Seed = 0,
    ) -> None:
        super().__init__()
        if resolution % LATENT_CELL or resolution < 64:
            raise ValueError(f"data.resolution is {resolution}; give a multiple of {LATENT_CELL} of at least 64")
        if not class_noun or not class_noun.strip():
            raise ValueError("class_noun is empty; say what the subject is, such as class_noun=dog")
        self.photos = load_folder(instance_dir)
        self.class_photos = load_folder(class_dir, most=num_class_images) if class_dir else None
        if self.class_photos and len(self.class_photos) < num_class_images:
            logging.getLogger(__name__).warning(
                "%s holds %d images, fewer than data.num_class_images=%d; they are used as they are, each more often",
                class_dir, len(self.class_photos), num_class_images,
            )  # fmt: skip
        self.instance_dir, self.class_noun, self.resolution = instance_dir, class_noun, resolution
        self.batch_size, self.num_views, self.zoom = batch_size, num_views, zoom
        self.num_class_images, self.num_val, self.seed = num_class_images, num_val, seed

    def introduction(self, concept: str, known: KnownWords | None = None) -> str:
        """Say what is learnt, and from how many photos; of a model that lists its words, that it has seen few things.

        Args:
            concept: The subject's name in prompts.
            known: The words that the model was taught.
        """
        article = "an" if self.class_noun[0].lower() in "aeiou" else "a"
        photos = f"{len(self.photos)} photo{'s' if len(self.photos) > 1 else ''}"
        seen = f"; this model has seen drawings of {len(known.words)} words and no photograph" if known else ""
        return f"learning <{concept}>, {article} {self.class_noun}, from {photos}{seen}"

    def instance_views(self) -> list[View]:
        """Make all views of the subject; the photos take turns."""
        number = self.num_views if self.zoom else len(self.photos)
        zoom = self.zoom or Zoom(min_scale=1.0, flip=False)
        views = []
        for index in range(number):
            rng = np.random.default_rng([self.seed, index, 11])
            photo = self.photos[index % len(self.photos)]
            views.append(zoom(photo, self.resolution, rng) if self.zoom else self._plain(photo))
        return [view for view in views if view.mask.any()]

    def class_views(self, images: list[Image.Image]) -> list[View]:
        """Make a view of each class image and of its mirror image."""
        mirrored = [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for image in images]
        return [self._plain(image) for image in (*images, *mirrored)]

    def train_dataloader(self) -> DataLoader:
        """Draws only: the module holds the latents of all views."""
        sampler = StepBatchSampler(2**20, **share_of(self.trainer, self.batch_size, self.seed))
        return DataLoader(_Draws(), batch_sampler=sampler, collate_fn=_stack)

    def val_dataloader(self) -> DataLoader | list:
        """Load the numbers of draws, each of which the learner turns into a view, a template, noise and a timestep."""
        if not self.num_val:
            return []
        # A loader draws a seed when it starts. With its own generator it leaves the training's random state alone.
        return DataLoader(range(self.num_val), self.batch_size, generator=torch.Generator())  # type: ignore[arg-type]

    def _plain(self, image: Image.Image) -> View:
        side = min(image.size)
        x, y = ((length - side) // 2 for length in image.size)
        cells = self.resolution // LATENT_CELL
        pixels = _resized(image.crop((x, y, x + side, y + side)), self.resolution)
        return View(pixels, np.ones((cells, cells), dtype=np.float32))


class _Draws(Dataset):
    def __getitems__(self, draws: list[Draw]) -> list[Draw]:
        return draws


def _stack(draws: list[Draw]) -> dict[str, Tensor]:
    return {
        "index": torch.tensor([draw.index for draw in draws]),
        "position": torch.tensor([draw.position for draw in draws]),
        "step": torch.tensor(draws[0].step),
    }
