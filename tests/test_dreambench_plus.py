"""A folder with the layout of DreamBench++, from its files to the table: every subject is learnt from its one image."""

import csv
import json
import subprocess
import sys
from pathlib import Path

from src.data.world.render import render
from src.data.world.scenes import subject_scene
from tests.tiny import tiny_sd

ROOT = Path(__file__).parents[1]
SUBJECTS = {
    "live_subject/animal/00": ("dog", ["a dog on the grass", "a photo of a dog at night"]),
    "live_subject/animal/01": ("cat", ["a cat on the grass"]),
    "object/00": ("cup", ["a cup on the beach"]),
}


def command(tmp_path: Path, *more: str) -> list[str]:
    training = ["data.num_class_images=2", "data.num_views=2", "data.batch_size=1", "trainer.max_steps=2"]
    return [
        *(sys.executable, "eval.py", "suite=dreambench_plus", f"suite.folder={tmp_path / 'data'}"),
        *(f"paths.root={tmp_path}/outputs", f"paths.cache_dir={tmp_path}/cache", f"backbone.path={tmp_path}/sd"),
        *(f"training.{override}" for override in training),
        *(f"training.backbone.path={tmp_path}/sd", f"training.paths.cache_dir={tmp_path}/cache"),
        *("method.sampling.num_inference_steps=2", "protocol.num_seeds=1", *more),
    ]


def test_a_folder_of_the_benchmark_is_learnt_and_scored(tmp_path: Path) -> None:
    for place, (noun, prompts) in SUBJECTS.items():
        image = tmp_path / "data" / "images" / f"{place}.jpg"
        captions = tmp_path / "data" / "captions" / f"{place}.txt"
        for path in (image, captions):
            path.parent.mkdir(parents=True, exist_ok=True)
        render(subject_scene(3, 0, noun)).save(image, quality=95)
        captions.write_text("\n".join([noun, *prompts]), encoding="utf-8")
    tiny_sd(tmp_path).save_pretrained(tmp_path / "sd")
    ended = subprocess.run(command(tmp_path), cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert ended.returncode == 0, ended.stderr
    names = ["live_subject_animal_00_dog", "live_subject_animal_01_cat", "object_00_cup"]
    banks = sorted(path.name.rpartition("-")[0] for path in (tmp_path / "cache" / "banks").glob("*.safetensors"))
    assert banks == names
    (folder,) = tmp_path.glob("outputs/eval/*/*")
    with (folder / "per_image.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["concept"], row["prompt"]) for row in rows if row["arm"] == "concept"] == [
        (names[0], "a {} on the grass"),
        (names[0], "a photo of a {} at night"),
        (names[1], "a {} on the grass"),
        (names[2], "a {} on the beach"),
    ]
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert list(metrics["categories"]) == ["live_subject/animal", "object"]
    assert all(of["concept"]["dino"]["mean"] <= 1 for of in metrics["categories"].values())
    (tmp_path / "data" / "captions" / "object" / "00.txt").write_text("vase\na cup", encoding="utf-8")
    refused = subprocess.run(command(tmp_path), cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert refused.returncode == 1
    assert "line 2: 'a cup' does not mention 'vase'" in refused.stderr.splitlines()[-1]
