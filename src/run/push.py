"""``push=USER/REPO``: upload what a training made to the Hugging Face hub, with a page that says what it is."""

import os
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from omegaconf import DictConfig

from src.run.following import without_defaults
from src.run.show import shown

REFERENCES, GRID = "references.png", "grid.png"
PUSHING = ("push=", "license=")
LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]*")
CARD = """---
license: {license}
tags: {tags}
pipeline_tag: text-to-image
{base}---

# {title}

{what}, learnt with Atelier{steps}.

{pictures}
## Draw with it

```bash
{use}
```

## How it was made

```bash
{made}
```

| what it says of itself | |
| --- | --- |
{facts}
{scores}"""


class Hub(Protocol):
    """What of ``huggingface_hub.HfApi`` is used."""

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> Any:
        """Make a repository, if there is none."""

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> Any:
        """Upload a folder's files in one commit."""


def check_push(cfg: DictConfig) -> None:
    """Refuse what could not be uploaded at the end, before anything is trained.

    Raises:
        ValueError: If the name is none, the licence is no identifier of the hub, there is no token, the hub may not be
            reached, or a search is asked for.
    """
    if not cfg.get("push"):
        return
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(cfg.push)
    except HFValidationError as error:
        raise ValueError(f"push={cfg.push} is no name of a repository ({error}); give push=USER/REPO") from error
    if "/" not in cfg.push:
        raise ValueError(f"push={cfg.push} says not whose it is; give push=USER/REPO")
    if not LICENSE.fullmatch(cfg.license):
        raise ValueError(
            f"license={cfg.license} is no licence of the hub; give its identifier, such as license=apache-2.0, or other"
        )
    if cfg.get("hpo"):
        raise ValueError("push=USER/REPO uploads what one training made, not a search; leave hpo or push out")
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise ValueError(f"push={cfg.push} needs the hub, but HF_HUB_OFFLINE is set; unset it, or leave push out")
    if get_token() is None:
        raise ValueError(f"push={cfg.push} needs a token that may write; type: hf auth login")


def pushed(
    cfg: DictConfig,
    made: Mapping[str, str],
    metrics: Mapping[str, float],
    typed: Sequence[str] = (),
    hub: Hub | None = None,
) -> str:
    """Upload what a training made; a new repository is private, one that exists stays as it is.

    Args:
        cfg: The configuration, whose ``push`` names the repository.
        made: What the training made, see ``Fitted``.
        metrics: Last value of everything that was logged.
        typed: Words of the command line.
        hub: The hub; None for the real one.

    Returns:
        Where it is now.

    Raises:
        ValueError: If the training made no file that can be shown.
    """
    if hub is None:
        from huggingface_hub import HfApi

        hub = HfApi()
    with TemporaryDirectory() as folder:
        title = write_folder(cfg, made, metrics, typed, Path(folder))
        hub.create_repo(cfg.push, private=True, exist_ok=True)
        hub.upload_folder(repo_id=cfg.push, folder_path=folder, commit_message=f"{title}, learnt with Atelier")
    return f"https://huggingface.co/{cfg.push} (private, if it is new)"


def write_folder(
    cfg: DictConfig, made: Mapping[str, str], metrics: Mapping[str, float], typed: Sequence[str], folder: Path
) -> str:
    """Write all that is uploaded: files of weights, the photos in one picture, the last grid of samples, and the page.

    Args:
        cfg: As in ``pushed``.
        made: As there.
        metrics: As there.
        typed: As there.
        folder: An empty folder.

    Returns:
        The title of the page.

    Raises:
        ValueError: If the training made no file that can be shown.
    """
    files = [Path(path) for path in made.values() if path.endswith(".safetensors")]
    if not files:
        raise ValueError(f"push={cfg.push} is given, but this training made no file of weights; leave push out")
    kind, facts, use = shown(str(files[0]))
    use = without_defaults(made["next"]) if "next" in made else use
    for path in files:
        shutil.copy(path, folder / path.name)
    pictures = _pictures(made, folder)
    scores = [f"| {name} | {value:.4g} |" for name, value in sorted(metrics.items())]
    base = cfg.get("backbone", {}).get("path", "")
    page = CARD.format(
        license=cfg.license,
        tags=f"[atelier, {cfg.name}]",
        # A folder of this machine is no name that a stranger could follow.
        base=f"base_model: {base}\n" if re.fullmatch(r"[\w.-]+/[\w.-]+", base) and not Path(base).exists() else "",
        title=files[0].stem,
        what=kind[0].upper() + kind[1:] + (f" of {_article(facts['class_noun'])}" if "class_noun" in facts else ""),
        steps=f" in {facts['steps']} steps" if "steps" in facts else "",
        pictures="".join(f"{told}\n\n![{told}]({name})\n\n" for name, told in pictures.items()),
        use=f"hf download {cfg.push} {files[0].name} --local-dir .\n{_of_anyone(use)}",
        made=_of_anyone(shlex.join(["python", "train.py", *_but_pushing(typed)])),
        facts="\n".join(f"| {name} | {_cell(name, text)} |" for name, text in facts.items()),
        scores="\n| at the end | |\n| --- | --- |\n" + "\n".join(scores) + "\n" if scores else "",
    )
    (folder / "README.md").write_text(page, encoding="utf-8")
    return files[0].stem


def _pictures(made: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Copy the pictures of a training to a folder; their names there, and what they are."""
    samples = Path(made["samples"]) if "samples" in made else None
    if samples is None:
        return {}
    grids = sorted(samples.glob("step-*.png"))
    found = {REFERENCES: ("The photos that it was learnt from", samples / REFERENCES)} | (
        {GRID: ("What it draws", grids[-1])} if grids else {}
    )
    there = {name: (told, path) for name, (told, path) in found.items() if path.exists()}
    for name, (_, path) in there.items():
        shutil.copy(path, folder / name)
    return {name: told for name, (told, _) in there.items()}


def _but_pushing(typed: Sequence[str]) -> list[str]:
    return [word for word in typed if not word.startswith(PUSHING)]


def _of_anyone(line: str) -> str:
    """A command without places of this machine: of each path from the root, the last name."""
    return re.sub(r"(?<![\w.])[/~][^\s'\"=,:{}\[\]]*?([^/\s'\"=,:{}\[\]]+)/?(?=$|[\s'\"=,:{}\[\]])", r"\1", line)


def _cell(name: str, text: str) -> str:
    told = Path(text).name if name in ("references", "backbone") and Path(text).is_absolute() else _of_anyone(text)
    return told.replace("|", "\\|").replace("\n", " ")


def _article(noun: str) -> str:
    return f"{'an' if noun[:1] in 'aeiou' else 'a'} {noun}"
