"""Photos of several subjects that are learnt together: the first as for a single one, the others beside it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from src.data.first_looks import ClassNoun, ImageFolder
from src.data.identity import files_digest
from src.data.images import MASKS, find_images
from src.data.mentions import check_name
from src.data.ranges import BatchSize, Count, Seed, Side
from src.data.subject import ConceptData, View, Zoom

Others = Mapping[str, Mapping[str, str | None]]
"""Name of a further subject to its ``class_noun``, its ``instance_dir`` and perhaps its ``class_dir``."""


class CombinationData(ConceptData):
    """The data of several subjects for one training.

    Args:
        instance_dir: As of ``ConceptData``, of the first subject.
        class_noun: As there.
        others: The further subjects; without any it is the data of the first alone.
        resolution: As there.
        batch_size: Instance images per step and rank, of all subjects together.
        num_views: Number of augmented views of each subject.
        zoom: As there.
        class_dir: As there, of the first subject.
        num_class_images: Number of images of each class.
        seed: As there.

    Attributes:
        each: The data of every subject, the first one's first.

    Raises:
        ValueError: As there, or if a further subject lacks its noun or its photos, or says what nothing reads.
    """

    incidental: ClassVar[tuple[str, ...]] = (*ConceptData.incidental, "others")

    @staticmethod
    def content(settings: Mapping[str, Any]) -> dict[str, str]:
        """Hash the photos and masks of every subject, whatever the files are called, and name the further ones."""
        found = _content(settings)
        for name, other in checked(settings.get("others") or {}).items():
            hashed = {**_content(other), "class_noun": other["class_noun"] or ""}
            found |= {f"others.{name}.{key}": text for key, text in hashed.items()}
        return found

    def __init__(
        self,
        instance_dir: ImageFolder,
        class_noun: ClassNoun,
        others: Others | None = None,
        resolution: Side = 512,
        batch_size: BatchSize = 1,
        num_views: Count = 100,
        zoom: Zoom | None = None,
        class_dir: ImageFolder | None = None,
        num_class_images: Count = 100,
        seed: Seed = 0,
    ) -> None:
        super().__init__(instance_dir, class_noun, resolution, batch_size, num_views, zoom, class_dir, seed=seed)
        self.others, self.num_class_images = checked(others or {}), num_class_images
        first = {"instance_dir": instance_dir, "class_noun": class_noun, "class_dir": class_dir}
        self.each = [
            ConceptData(
                one["instance_dir"] or "",
                one["class_noun"] or "",
                resolution,
                batch_size,
                num_views,
                zoom,
                one.get("class_dir"),
                num_class_images,
                seed=seed,
            )
            for one in (first, *self.others.values())
        ]

    def instance_views(self) -> list[View]:
        """Make all views of the only subject.

        Raises:
            ValueError: If there are several.
        """
        if self.others:
            raise ValueError(
                f"this method learns one subject, but data.others gives {', '.join(self.others)} as well; "
                "choose method=mudi or method=custom_diffusion_joint"
            )
        return super().instance_views()


def _content(settings: Mapping[str, Any]) -> dict[str, str]:
    masks = Path(settings["instance_dir"]) / MASKS
    found = {"masks": files_digest(find_images(masks))} if masks.is_dir() else {}
    return {**ConceptData.content(settings), **found}


def checked(others: Others) -> Others:
    """Return further subjects as they are, if each says what it is and where its photos lie.

    Raises:
        ValueError: If one does not, or says anything else.
    """
    known = ("class_noun", "instance_dir", "class_dir")
    for name, one in others.items():
        check_name(name, "data.others")
        for key in one:
            if key not in known:
                raise ValueError(f"data.others.{name} has no {key!r}; it takes {', '.join(known)}")
        for key, example in {"class_noun": "cat", "instance_dir": "FOLDER"}.items():
            if not one.get(key):
                raise ValueError(f"data.others.{name} has no {key}; add data.others.{name}.{key}={example}")
    return others
