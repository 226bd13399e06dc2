"""The bugs that can be planted: one change of one formula each, and the test that must fail with it.

They stand in ``planted.yaml``, by file. ``code`` occurs there exactly once, ``bug`` takes its place.
"""

from pathlib import Path
from typing import NamedTuple

import yaml


class Mutant(NamedTuple):
    """One planted bug; ``test`` is a file and a function in it, in all its parametrisations."""

    name: str
    file: str
    code: str
    bug: str
    test: str


LISTED = yaml.safe_load(Path(__file__).with_name("planted.yaml").read_text(encoding="utf-8"))
MUTANTS = [Mutant(file=file, **one) for file, bugs in LISTED.items() for one in bugs]
