"""A picture drawn again from its own file."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from src.data.files import save_png
from src.data.notes import chunks
from src.data.request import ImageStyle, Request
from src.modules.backbones.base import text_projections
from src.modules.backbones.unet import UNetBackbone
from src.modules.latexblend.bank import ConceptBank
from src.run.recall import recalled, worth_noting
from tests.tiny import tiny_sd

ROOT = Path(__file__).parents[2]


def noted(folder: Path, request: Request, *command: str, drawn_with: dict | None = None) -> str:
    path = folder / "image.png"
    save_png(Image.new("RGB", (8, 8)), path, chunks(request, (8, 8), drawn_with or {}, {}, worth_noting(command)))
    return str(path)


def test_arguments_of_the_picture_come_back_without_places_and_without_others_concepts(tmp_path: Path) -> None:
    command = ["prompt=['a <rex>','a <tom>']", "num_images=9", "++bank.rex=a.safetensors", "++bank.tom=b.safetensors"]
    more = ["++layout.tom=[0,0,1,1]", "method.keep_context=true", "output=there", "paths.root=here", "name=x", "seed=5"]
    image = noted(tmp_path, Request("a <rex:0.5>", 7), *command, *more)
    kept = ["++bank.rex=a.safetensors", "method.keep_context=true"]
    assert recalled(["num_images=1", f"from={image}"]) == [*kept, "prompt='a <rex:0.5>'", "seed=7", "num_images=1"]
    assert recalled(["prompt='a dog'"]) == ["prompt='a dog'"]


def test_what_stands_beside_it_wins(tmp_path: Path) -> None:
    image = noted(tmp_path, Request("a <rex>", 7), "++bank.rex=a.safetensors", "method=latexblend/draw")
    found = recalled([f"from={image}", "seed=1", "bank.rex=b.safetensors", "method=omg"])
    assert found == ["bank.rex=b.safetensors", "method=omg", "prompt='a <rex>'", "seed=1", "num_images=1"]


def test_the_style_of_one_picture_comes_back(tmp_path: Path) -> None:
    image = noted(tmp_path, Request("a dog", 7, ImageStyle("neon.png")), "style=[neon.png,ink.png]", "method=style_svd")
    assert recalled([f"from={image}"]) == [
        *("method=style_svd", "prompt='a dog'", "seed=7", "num_images=1", "style=neon.png")
    ]


def test_a_picture_that_no_command_drew_leads_to_prompt_and_seed(tmp_path: Path) -> None:
    save_png(Image.new("RGB", (8, 8)), tmp_path / "image.png", chunks(Request("a dog", 7), (8, 8), {}, {}))
    with pytest.raises(ValueError, match="notes no command; type one with its prompt='a dog' and seed=7"):
        recalled([f"from={tmp_path / 'image.png'}"])


def test_a_picture_with_a_concept_is_drawn_again_from_its_file(tmp_path: Path) -> None:
    """The same pixels, alone, whatever it was drawn with; another bank in the same place is said."""
    tiny_sd(tmp_path).save_pretrained(tmp_path / "sd")
    backbone = UNetBackbone.from_pretrained(str(tmp_path / "sd"))

    def learn(seed: int) -> None:
        noise = torch.Generator().manual_seed(seed)
        rows = {
            name: torch.randn(2, linear.out_features, generator=noise)
            for name, linear in text_projections(backbone.unet).items()
        }
        metadata = {"class_noun": "dog", "backbone_hash": backbone.fingerprint}
        ConceptBank(rows, metadata).save(tmp_path / "rex.safetensors")

    def draw(*arguments: str) -> subprocess.CompletedProcess:
        places = [f"paths.root={tmp_path}/outputs", f"paths.cache_dir={tmp_path}/cache"]
        ended = subprocess.run(
            [sys.executable, "generate.py", *places, *arguments],
            cwd=ROOT,
            env=os.environ,
            capture_output=True,
            text=True,
            encoding="utf-8",
        )
        assert ended.returncode == 0, ended.stderr
        return ended

    learn(0)
    options = [f"backbone.path={tmp_path}/sd", "method.sampling.num_inference_steps=2", "method.batch_size=1"]
    draw(
        "prompt='a <rex:0.5>'",
        "num_images=2",
        f"bank.rex={tmp_path}/rex.safetensors",
        *options,
        f"output={tmp_path}/one",
    )
    (image,) = (tmp_path / "one").glob("*_s0001_*.png")
    again = draw(f"from={image}", f"output={tmp_path}/two")
    assert "is not the file" not in again.stderr
    (same,) = (tmp_path / "two").glob("*_s0001_*.png")
    assert (same.name, same.read_bytes()) == (image.name, image.read_bytes())
    learn(1)
    assert "rex.safetensors is not the file that the picture was drawn with" in draw(f"from={image}").stderr
