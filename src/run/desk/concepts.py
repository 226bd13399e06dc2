"""The concepts that the desk has: banks in its folders, their nouns, steps and photos, and whether they fit."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from src.data.banks import concept_header
from src.data.images import EXTENSIONS
from src.data.mentions import NAME
from src.run.desk.places import Places, named

PATTERNS = ("train/*/*/exports/*.safetensors",)
MOST_THUMBNAILS = 5
MOST_BANKS = 400


@dataclass(frozen=True)
class Concept:
    """One bank.

    Attributes:
        name: What a prompt calls it, unless another has the name.
        path: The file.
        noun: Its class noun.
        steps: How long it was trained; None where the file does not say.
        method: Which method learnt it.
        backbone: Name and fingerprint of its model.
        photos: Folder of its photos; empty where there are none that the desk may show.
        pictures: Files to show of it, photos first.
        made: When, in seconds since the epoch.
        trouble: Why it cannot be used; empty where it can.
    """

    name: str
    path: str
    noun: str = ""
    steps: int | None = None
    method: str = "latexblend"
    backbone: tuple[str, str] = ("", "")
    photos: str = ""
    pictures: list[str] = field(default_factory=list)
    made: float = 0.0
    trouble: str = ""

    def told(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Say to a page what it shows: no path but the bank's own.

        Args:
            facts: What the desk knows of the model that it was started with.
        """
        told = {**asdict(self), "id": named(self.path), "trouble": self.trouble or self._misfit(facts)}
        del told["backbone"], told["photos"]
        told["pictures"] = [named(path) for path in self.pictures]
        return told

    def _misfit(self, facts: Mapping[str, Any]) -> str:
        name, fingerprint = self.backbone
        if not facts.get("fingerprint") or fingerprint == facts["fingerprint"]:
            return ""
        learnt = f"learnt with {name or 'another model'}"
        return f"{learnt}, but this desk draws with {facts['model']}; start it with that model to use this concept"


class Concepts:
    """Finds banks; each file is read once, until it changes.

    Args:
        root: Folder of all runs.
        places: Folders that banks and photos may be in.
        given: Name to path of those that the desk was started with.
    """

    def __init__(self, root: Path, places: Places, given: Mapping[str, str]) -> None:
        self.root, self.places, self.given = root, places, dict(given)
        self._read: dict[tuple[str, int], Concept] = {}
        self.pictures: dict[str, str] = {}

    def found(self) -> list[Concept]:
        """List the banks that were given, then all others, the newest first."""
        paths = {path: name for name, path in self.given.items()}
        for pattern in PATTERNS:
            paths |= {str(path): "" for path in self.root.glob(pattern) if str(path) not in paths}
        for folder in self.places.folders[3:]:
            paths |= {str(path): "" for path in folder.rglob("*.safetensors") if str(path) not in paths}
        every = [self._concept(path, name) for path, name in list(paths.items())[:MOST_BANKS]]
        good = [one for one in every if one is not None]
        first = list(self.given.values())
        ordered = sorted(
            good, key=lambda one: (first.index(one.path), 0) if one.path in first else (len(first), -one.made)
        )
        self.pictures = {named(path): path for one in ordered for path in one.pictures}
        return ordered

    def _concept(self, path: str, name: str) -> Concept | None:
        try:
            stamp = Path(path).stat()
        except OSError:
            return Concept(name, path, trouble=f"there is no file {path}") if name else None
        key = (path, stamp.st_mtime_ns)
        if key not in self._read:
            read = self._from_file(path, name, stamp.st_mtime)
            if read is None:
                return None
            self._read[key] = read
        return self._read[key]

    def _from_file(self, path: str, name: str, made: float) -> Concept | None:
        if not self.places.holds(path):
            return None
        stem = re.sub(r"[^A-Za-z0-9_-]", "", Path(path).stem)
        own = name or (stem if NAME.fullmatch(stem) else "subject")
        try:
            header = concept_header(path)
        except ValueError as error:
            return Concept(own, path, made=made, trouble=str(error)) if name else None
        steps, photos = header.get("steps", ""), header.get("references", "")
        photos = photos if photos and self.places.holds(photos) and Path(photos).is_dir() else ""
        return Concept(
            name=own,
            path=path,
            noun=header.get("class_noun", ""),
            steps=int(steps) if steps.isdecimal() else None,
            method=header.get("method", "latexblend"),
            backbone=(header.get("backbone", ""), header.get("backbone_hash", "")),
            photos=photos,
            pictures=self._pictures(Path(photos)) if photos else [],
            made=made,
        )

    def _pictures(self, folder: Path) -> list[str]:
        """The first photos, or none where a link leads out of the folders."""
        found = sorted(path for path in folder.iterdir() if path.suffix.lower() in EXTENSIONS)
        return [str(path) for path in found[:MOST_THUMBNAILS] if self.places.holds(path)]
