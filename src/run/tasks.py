"""What the entry points take themselves, beside the parts that they build: the keys at the top of conf/*.yaml."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from annotated_types import Interval, MinLen

from src.data.ranges import FolderName, Seed

Text = Annotated[str, MinLen(1)]
Several = Text | Annotated[list[Text], MinLen(1)]


class Train:
    """Of train.py."""

    task: Literal["train"]
    name: FolderName
    seed: Seed
    resume: bool
    dry_run: bool
    push: Text | None
    license: Text


class Generate:
    """Of generate.py."""

    task: Literal["generate"]
    name: FolderName
    seed: Seed
    prompt: Several | None
    num_images: Annotated[int, Interval(ge=1, le=100_000)]
    bank: Mapping[str, str]
    layout: Mapping[str, list[float] | Text]
    adapter: Text | None
    style: Several | None
    style_prompt: Several | None
    image: Text | None
    strength: float | None
    mask: Text | None
    control: Text | None
    output: Text
    dry_run: bool


class Comparison:
    """Of a sweep's page."""

    title: str | None
    published: list[Mapping[str, float | None]] | None


class Eval:
    """Of eval.py."""

    task: Literal["eval"]
    name: FolderName
    seed: Seed
    bank: Mapping[str, str]
    adapter: Text | None
    references: Mapping[str, str]
    reference_readers: Mapping[str, Any]
    training: Mapping[str, Any]
    comparison: Comparison
    dry_run: bool


class Doctor:
    """Of doctor.py."""

    task: Literal["doctor"]
    name: FolderName
    seed: Seed
    bank: Mapping[str, str]
    training: Mapping[str, Any]
    report: Text


class DeskSettings:
    """Where the desk is to be reached, and what it may read."""

    host: Text
    port: Annotated[int, Interval(ge=0, le=65535)]
    folders: list[Text]
    open: bool


class Desk(Generate):
    """Of desk.py: what it draws with, and where it is to be reached."""

    task: Literal["desk"]  # type: ignore[assignment]
    desk: DeskSettings


class Paths:
    """Below ``paths``, in every task."""

    root: Text
    run_dir: Text
    images_dir: Text
    cache_dir: Text


TASKS: dict[str, type] = {"train": Train, "generate": Generate, "eval": Eval, "doctor": Doctor, "desk": Desk}
"""By the name of the entry point."""
