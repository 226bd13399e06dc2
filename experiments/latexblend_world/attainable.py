"""What a perfect model would score: true renders of each subject in the scene of each prompt, no model at all.

``python -m experiments.latexblend_world.attainable``. The ceiling of the protocol compares a
subject's photos with each other; no image of a pencil sketch, or with a second object in it, can be that near.
"""

import json
from dataclasses import replace
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from src.data.files import write_text
from src.data.world.export import NUM_PHOTOS, SUBJECTS
from src.data.world.render import render
from src.data.world.scenes import Placed, Scene, subject_scene
from src.data.world.vocabulary import BACKGROUNDS, STYLES, Look, subject
from src.eval.results.results import Table, provenance
from src.eval.scores.similarity import clip_t, pair_mean
from src.eval.statistics.bootstrap import Interval, bootstrap_mean

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results"
SCORES = ("clip_t", "dino")
COMMAND = "python -m experiments.latexblend_world.attainable"
NUM_VIEWS = 8
FIRST_VIEW = 100
"""Beyond those that were photographed as references."""
NEIGHBOURS = {
    "left of a red cup": Placed(Look("cup", "red", "white", "plain", None, "black"), 0.74, 0.6, 0.2),
    "next to a blue car": Placed(Look("car", "blue", "white", "plain", None, "black"), 0.74, 0.6, 0.2),
}


def prompted(prompt: str, noun: str, index: int, view: int) -> Scene:
    """The scene of a prompt; what the prompt leaves open changes with the view."""
    background = next((name for name, words in BACKGROUNDS.items() if words in prompt), list(BACKGROUNDS)[view % 6])
    scene = subject_scene(index, view, noun, background)
    style = next((name for name, words in STYLES.items() if name != "photo" and words in prompt), "photo")
    for words, neighbour in NEIGHBOURS.items():
        if words in prompt:
            scene = replace(scene, objects=(Placed(subject(index, noun), 0.26, 0.6, 0.2), neighbour))
    return replace(scene, style=style)


def main() -> None:
    """Score the renders; write one line per prompt, and the means."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("eval", ["suite=world", "paths.run_dir=."])
    profile, prompts = instantiate(cfg.metrics), list(cfg.protocol.prompts)
    rows = []
    for name in cfg.suite.subjects:
        noun, index = SUBJECTS[name]
        photos = [render(subject_scene(index, view, noun)) for view in range(NUM_PHOTOS)]
        references = profile.dino.encode_images(photos)
        for prompt in prompts:
            views = range(FIRST_VIEW, FIRST_VIEW + NUM_VIEWS)
            images = [render(prompted(prompt, noun, index, view)) for view in views]
            texts = profile.clip.encode_texts([prompt.format(noun)])
            text = clip_t(profile.clip.encode_images(images), texts).tolist()
            likeness = pair_mean(profile.dino.encode_images(images), references).tolist()
            rows += [(name, prompt, *scores) for scores in zip(text, likeness, strict=True)]
    found = {prompt: _means([row for row in rows if row[1] == prompt]) for prompt in prompts} | {"all": _means(rows)}
    title = f"Renders of {len(cfg.suite.subjects)} subjects, mean [95%], profile {profile.name}"
    table = Table(title, ["prompt", *SCORES], [[prompt, *map(str, of.values())] for prompt, of in found.items()])
    write_text(RESULTS / "attainable.md", table.markdown())
    renders = {score: interval.as_dict() for score, interval in found["all"].items()}
    record = {"profile": profile.name, "overall": {"renders": renders}, **provenance(), "command": COMMAND}
    write_text(RESULTS / "attainable.json", json.dumps(record, indent=2) + "\n")


def _means(rows: list[tuple[str, str, float, float]]) -> dict[str, Interval]:
    groups = [[row[factor] for row in rows] for factor in (0, 1) if len({row[factor] for row in rows}) > 1]
    values = ([row[2] for row in rows], [row[3] for row in rows])
    return {score: bootstrap_mean(of, groups) for score, of in zip(SCORES, values, strict=True)}


if __name__ == "__main__":
    main()
