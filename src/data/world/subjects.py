"""Held-out individuals as folders of photos, like a user's: ``python -m src.data.world.subjects world/subjects``."""

import sys
from pathlib import Path

from src.data.pictures import save_png_atomic
from src.data.world.render import render
from src.data.world.scenes import subject_scene

SUBJECTS: dict[str, tuple[str, int]] = {
    "rex": ("dog", 0),
    "mittens": ("cat", 1),
    "pip": ("bird", 2),
    "clover": ("rabbit", 4),
    "bolt": ("robot", 13),
    "scout": ("backpack", 15),
    "fido": ("dog", 16),
    "herbie": ("car", 7),
    "felix": ("cat", 17),
    "kiwi": ("bird", 18),
    "hazel": ("rabbit", 20),
    "chip": ("robot", 29),
}
"""Name to class noun and subject number; tables score the first five and herbie, settings are chosen on the others."""
NUM_PHOTOS = 5


def write_subjects(folder: str | Path) -> list[Path]:
    """Write five photos of every named subject and return their paths."""
    paths = []
    for name, (noun, index) in SUBJECTS.items():
        for view in range(NUM_PHOTOS):
            path = Path(folder) / name / f"{view:02d}.png"
            save_png_atomic(render(subject_scene(index, view, noun)), path)
            paths.append(path)
    return paths


if __name__ == "__main__":
    print(f"{len(write_subjects(sys.argv[1]))} photos in {sys.argv[1]}")
