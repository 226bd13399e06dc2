"""A training and its drawings in the C locale, with paths that hold what shells and Hydra read otherwise."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.data.commands import command
from src.data.images import image_texts
from src.data.notes import PARAMETERS, read_note
from src.modules.latexblend.bank import ConceptBank
from tests.tiny import tiny_sd

PROMPT = "\u201ca <rex>\u201d \u5728\u8349\u5730"

PHOTOS, MODEL = "$HOME {photos}", 'sd `x` "y"'


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    """A folder to type the commands in, so that nothing is written to the repository."""
    folder = tmp_path_factory.mktemp("place")
    for name in ("train.py", "generate.py", "conf"):
        (folder / name).symlink_to(root / name)
    odd = folder / "Anna's photos, 2024 (best) \u7167\u7247"
    (odd / PHOTOS).mkdir(parents=True)
    for index in range(2):
        pixels = np.random.default_rng(index).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(odd / PHOTOS / f"\u72d7 {index}.png")
    tiny_sd(folder / "made").save_pretrained(odd / MODEL)
    return odd


def typed(place: Path, words: str) -> str:
    """Type a command in a shell of the C locale; ``python`` is this one."""
    folder = place.parent
    (folder / "bin").mkdir(exist_ok=True)
    (folder / "bin" / "python").unlink(missing_ok=True)
    (folder / "bin" / "python").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n', encoding="utf-8")
    (folder / "bin" / "python").chmod(0o755)
    path = os.pathsep.join([str(folder / "bin"), os.environ["PATH"]])
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PATH": path}
    ended = subprocess.run(
        ["bash", "-c", words.encode("utf-8")], cwd=folder, env=environment, capture_output=True, check=False
    )
    assert ended.returncode == 0, ended.stderr.decode("utf-8", "replace")[-3000:]
    return ended.stdout.decode("utf-8")


@pytest.fixture(scope="module")
def told(place: Path) -> str:
    """What a training of one step prints."""
    settings = {
        "+experiment": "concept_dog",
        "concept": "rex",
        "data.instance_dir": str(place / PHOTOS),
        "data.num_class_images": 1,
        "backbone.path": str(place / MODEL),
        "paths.root": str(place / "out"),
        "paths.cache_dir": str(place / "cache"),
        "trainer.max_steps": 1,
        "trainer.val_check_interval": 1,
        "callbacks.samples.prompts": [PROMPT],
        "method.learner.sampling.num_inference_steps": 1,
    }
    return typed(place, command("train.py", settings))


def printed(told: str, what: str) -> str:
    (line,) = re.findall(rf"^{what}: (.*)$", told, re.MULTILINE)
    return line


def test_a_training_ends_with_its_bank(place: Path, told: str) -> None:
    bank = ConceptBank.load(printed(told, "concept bank"))
    assert bank.metadata["references"] == str(place / PHOTOS)
    assert PROMPT in next((place / "out").rglob("config.yaml")).read_text(encoding="utf-8")


def test_the_printed_command_draws_as_it_is_printed(place: Path, told: str) -> None:
    drawn = Path(printed(typed(place, printed(told, "next")), "4 images"))
    assert len(list((place.parent / drawn).glob("*.png"))) == 5


def test_a_prompt_of_another_script_is_drawn(place: Path, told: str) -> None:
    settings = {
        "prompt": PROMPT,
        "bank.rex": printed(told, "concept bank"),
        "backbone.path": str(place / MODEL),
        "num_images": 1,
        "output": str(place / "\u753b"),
        "method.sampling.num_inference_steps": 1,
    }
    assert str(place / "\u753b") in typed(place, command("generate.py", settings))
    (image,) = (path for path in (place / "\u753b").glob("*.png") if path.name != "grid.png")
    assert read_note(str(image)).prompt == PROMPT
    assert image_texts(image)[PARAMETERS].startswith(f"{PROMPT}\n")
