"""Subjects that have one image and prompts of their own, in a folder with the layout of DreamBench++.

The benchmark (Peng et al., arXiv 2406.16855) is published as ``images/<category>/NAME.jpg`` beside
``captions/<category>/NAME.txt``; a category may be a folder in a folder, such as ``live_subject/animal``. The first
line of a captions file is the subject's noun, each further line a prompt that mentions it. Its reader is the class
``DreamBenchPlus`` of github.com/yuangpeng/dreambench_plus, whose names of subjects these are.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from src.data.images import EXTENSIONS, find_images
from src.data.mentions import NAME, parse_prompt, shown
from src.data.schema import NOUN

IMAGES, CAPTIONS = "images", "captions"
"""The two folders, in which files of one subject have one name."""


@dataclass(frozen=True)
class FolderSubject:
    """One subject of the folder.

    Attributes:
        name: What prompts call it: category, file and noun, such as ``object_03_red_mug``.
        category: Its folder below ``images``, such as ``live_subject/animal``; ``.`` for none.
        class_noun: The plain word for what it is.
        image: The file that shows it.
        prompts: With ``{}`` where it stands, once or more often.
    """

    name: str
    category: str
    class_noun: str
    image: Path
    prompts: tuple[str, ...]


def read_subjects(folder: str | Path, categories: Collection[str] | None = None) -> list[FolderSubject]:
    """Read the subjects of a folder, in the order of their paths.

    Args:
        folder: Holds ``images`` and ``captions``.
        categories: Which to read, by the whole path of a category or by its last folder; None for all.

    Raises:
        ValueError: If a folder or file is missing, there is no such category, or a captions file is empty, has no
            prompt, or has a prompt that does not mention its noun.
    """
    folder = Path(folder).expanduser()
    for name in (IMAGES, CAPTIONS):
        if not (folder / name).is_dir():
            raise ValueError(
                f"{folder} holds no folder {name}; give the folder in which {IMAGES}/ and {CAPTIONS}/ lie beside each "
                "other, as in DreamBench++"
            )
    places = {path.relative_to(folder / IMAGES): path for path in find_images(folder / IMAGES, below=True)}
    _refuse_lonely(folder, places)
    known = dict.fromkeys(place.parent.as_posix() for place in places)
    for one in categories or ():
        if one not in {*known, *(Path(path).name for path in known)}:
            close = get_close_matches(one, known, n=1)
            advice = f"did you mean {close[0]}?" if close else f"choose among: {', '.join(known)}"
            raise ValueError(f"{folder / IMAGES} has no category {one!r}; {advice}")
    chosen = [
        place for place in places if not categories or {place.parent.as_posix(), place.parent.name} & set(categories)
    ]
    return [_read(folder, place) for place in chosen]


def _refuse_lonely(folder: Path, places: Collection[Path]) -> None:
    """Refuse images that share a captions file, and captions without an image."""
    stems: dict[Path, Path] = {}
    for place in places:
        if other := stems.get(place.with_suffix("")):
            raise ValueError(f"{other} and {place} of {folder / IMAGES} would share one captions file; rename one")
        stems[place.with_suffix("")] = place
    for path in sorted((folder / CAPTIONS).rglob("*.txt")):
        place = path.relative_to(folder / CAPTIONS).with_suffix("")
        if place not in stems and not path.name.startswith("."):
            raise ValueError(f"{path} has no image: there is no {folder / IMAGES / place} with {', '.join(EXTENSIONS)}")


def _read(folder: Path, place: Path) -> FolderSubject:
    captions = folder / CAPTIONS / place.with_suffix(".txt")
    if not captions.is_file():
        raise ValueError(
            f"{folder / IMAGES / place} has no prompts: there is no {captions}; write its noun in the first line, and "
            "a prompt in each further line"
        )
    try:
        lines = captions.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{captions} is no text in UTF-8; save it as such") from None
    written = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not written:
        raise ValueError(f"{captions} is empty; write the noun in its first line, and a prompt in each further line")
    noun = re.sub(r"^(a|an|the)\s+", "", written[0][1], flags=re.IGNORECASE)
    if expected := NOUN(noun):
        raise ValueError(f"the first line of {captions} is {shown(noun)}; write the subject's noun there, {expected}")
    if len(written) == 1:
        raise ValueError(f"{captions} has the noun {noun!r}, but no prompt; write one in each further line")
    name = subject_name(place, noun)
    prompts = tuple(_template(f"{captions}, line {number}", prompt, noun, name) for number, prompt in written[1:])
    return FolderSubject(name, place.parent.as_posix(), noun, folder / IMAGES / place, prompts)


def subject_name(place: Path, noun: str) -> str:
    """Name a subject after category, file and noun, so that prompts can mention it.

    Args:
        place: Its image, below ``images``.
        noun: Its noun.
    """
    told = "_".join([*place.with_suffix("").parts, noun.lower()])
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", told).strip("_-")
    return name if NAME.fullmatch(name) else f"subject_{name}"


def _template(where: str, prompt: str, noun: str, name: str) -> str:
    """A prompt with ``{}`` for its noun, wherever that stands as a word of its own.

    Raises:
        ValueError: If it stands nowhere, or where no mention can.
    """
    if set("{}<>") & set(prompt):
        raise ValueError(f"{where}: {shown(prompt)} has one of {{ }} < >, which mean something else here; leave it out")
    template = re.sub(rf"(?<![\w-]){re.escape(noun)}(?![\w-])", "{}", prompt, flags=re.IGNORECASE)
    if "{}" not in template:
        raise ValueError(
            f"{where}: {shown(prompt)} does not mention {noun!r}, the noun of the first line; write it where the "
            "subject stands, or choose other categories by suite.categories=[NAME]"
        )
    try:
        parse_prompt(template.replace("{}", f"<{name}>"), {name: noun})
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return template
