"""Write held-out individuals and styles as a user's folders: ``python -m src.data.world.export``."""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

from PIL import Image

from src.data.files import save_png, write_text
from src.data.images import MASKS
from src.data.schema import read_json
from src.data.world.render import object_mask, render
from src.data.world.scenes import Scene, subject_scene
from src.data.world.vocabulary import BACKGROUNDS, HELD_OUT_STYLES, Look, subject

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
LOOKS = "looks.json"


def write_subjects(folder: str | Path) -> list[Path]:
    """Write five photos of every named subject, each with its mask; return the paths of the photos."""
    paths = []
    for name, (noun, index) in SUBJECTS.items():
        for view in range(NUM_PHOTOS):
            scene, path = subject_scene(index, view, noun), Path(folder) / name / f"{view:02d}.png"
            save_png(render(scene), path)
            save_png(object_mask(scene), path.parent / MASKS / path.name)
            paths.append(path)
    return paths


def write_looks(folder: str | Path) -> Path:
    """Write what every named subject looks like into ``looks.json``, which ``known_look`` reads; return its path."""
    path = Path(folder) / LOOKS
    looks = {name: asdict(subject(index, noun)) for name, (noun, index) in SUBJECTS.items()}
    write_text(path, json.dumps(looks, indent=1) + "\n")
    return path


def known_look(source: str, class_noun: str) -> Look | None:
    """Return what a subject looks like, None where nothing says it.

    Args:
        source: Where its photos come from: ``world:INDEX``, or a folder beside which ``looks.json`` has its name.
        class_noun: What it is.

    Raises:
        ValueError: If ``looks.json`` is damaged.
    """
    kind, colon, index = source.partition(":")
    if kind == "world" and colon and index.isdecimal():
        return subject(int(index), class_noun)
    path = Path(source).parent / LOOKS
    if not source or not path.is_file():
        return None
    known = read_json(path, "what subjects look like").get(Path(source).name)
    return None if known is None else Look(**known)


def subject_photos(index: str, class_noun: str) -> list[Image.Image]:
    """Five photos of a held-out subject: what ``references.NAME=world:INDEX`` stands for.

    Args:
        index: The number of the subject.
        class_noun: What it is, such as ``dog``.

    Raises:
        ValueError: If the index is no number.
    """
    if not index.isdecimal():
        raise ValueError(f"references 'world:{index}' should be world: and the number of a subject, e.g. world:3")
    return [render(subject_scene(int(index), view, class_noun)) for view in range(NUM_PHOTOS)]


STYLE_IMAGES: dict[str, tuple[str, str, str]] = {
    "neon": ("neon", "flower", "night"),
    "blueprint": ("blueprint", "house", "beach"),
    "sepia": ("sepia", "tree", "snow"),
    "woodcut": ("woodcut", "boat", "forest"),
    "mosaic": ("mosaic", "cup", "room"),
    "glass": ("glass", "bird", "grass"),
    "heat": ("heat", "robot", "beach"),
    "stitch": ("stitch", "rabbit", "room"),
    "chalk": ("chalk", "car", "grass"),
    "negative": ("negative", "duck", "night"),
}
"""Name to style, noun and background."""
FIRST_SUBJECT = 1000


def style_scene(name: str) -> Scene:
    """Make the scene of one of ``STYLE_IMAGES``, with a held-out individual that no prompt and no bank has."""
    style, noun, background = STYLE_IMAGES[name]
    index = FIRST_SUBJECT + list(STYLE_IMAGES).index(name)
    return replace(subject_scene(index, 0, noun, background), style=style)


def write_style_images(folder: str | Path) -> list[Path]:
    """Write every style image, with its words in the file that ``style_references`` reads; return the images' paths."""
    paths = []
    for name in STYLE_IMAGES:
        scene, path = style_scene(name), Path(folder) / f"{name}.png"
        look = scene.objects[0].look
        content = f"a {look.color} {look.pattern} {look.noun} {BACKGROUNDS[scene.background]}"
        save_png(render(scene), path)
        told = {"style": HELD_OUT_STYLES[scene.style], "content": content}
        write_text(path.with_suffix(".json"), json.dumps(told, indent=1) + "\n")
        paths.append(path)
    return paths


if __name__ == "__main__":
    # Writing them again gives the same bytes.
    world = sys.argv[1] if len(sys.argv) > 1 else "world"
    print(f"{len(write_subjects(f'{world}/subjects'))} photos in {world}/subjects")
    print(f"their looks in {write_looks(f'{world}/subjects')}")
    print(f"{len(write_style_images(f'{world}/styles'))} style images in {world}/styles")
