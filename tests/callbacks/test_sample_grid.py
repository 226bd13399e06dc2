"""Grids of samples while a model learns, and how well they fit their prompts."""

from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from lightning.pytorch.loggers import CSVLogger
from PIL import Image

import src.run.cli  # noqa: F401  (registers the resolvers)
from src.callbacks.run_report import read_curves
from src.callbacks.sample_grid import SampleGrid
from src.eval.profile import Profile
from tests.callbacks.conftest import Colours, TinyData, TinyModule, assert_training_is_left_alone, tiny_trainer

ROOT = Path(__file__).parents[2]


def grid(folder: Path, **options) -> SampleGrid:
    profile = Profile("colours", Colours(), Colours(), "full", "all", text_scale=2.5)
    return SampleGrid(str(folder), ["a <rex>"], 2, 2, 10, profile, **({"texts": ["a dog"]} | options))


def red_share(seed: int, step: int) -> float:
    """Cosine with red of what TinyModule draws."""
    red, green = 10 * seed + 1, 20 * step + 1
    return red / float(np.hypot(red, green))


def test_clip_t_of_every_grid_is_logged_and_can_be_monitored(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="logs")
    trainer = tiny_trainer(tmp_path, 5, callbacks=[grid(tmp_path / "samples")], logger=logger)
    trainer.fit(TinyModule(), TinyData())
    logger.save()
    steps, scores = read_curves([Path(logger.log_dir) / "metrics.csv"])["val/clip_t"]
    assert steps == [0, 2, 4, 5]
    expected = [2.5 * (red_share(10, step) + red_share(11, step)) / 2 for step in (0, 2, 4, 5)]
    assert scores == pytest.approx(expected, rel=1e-5)
    assert trainer.callback_metrics["val/clip_t"].item() == pytest.approx(expected[-1], rel=1e-5)
    assert len(list((tmp_path / "samples").iterdir())) == 5


def test_grids_leave_the_loss_trace_alone(tmp_path: Path) -> None:
    assert_training_is_left_alone(grid(tmp_path), tmp_path)


def test_prompts_without_their_texts_are_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 prompts need as many texts, got 2"):
        grid(tmp_path, texts=["a dog", "a cat"])


def test_the_worlds_clip_scores_the_grids_of_llmdiff_on_whole_prompts(tmp_path: Path) -> None:
    if not (ROOT / "world" / "clip").exists():
        pytest.skip("world/clip is not in this checkout")
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", ["+experiment=llmdiff", f"paths.run_dir={tmp_path}"])
    samples = instantiate(cfg.callbacks.samples, _convert_="all")
    trainer = tiny_trainer(tmp_path, 1, callbacks=[samples])
    trainer.fit(TinyModule(), TinyData())
    assert 0 < abs(trainer.callback_metrics["val/clip_t"].item()) < 1
    clip = samples.profile.clip
    tokens = clip.tokenizer(samples.texts)
    # A text that is too long has no padding left.
    end = tokens[0, -1]
    assert bool((tokens[:, -2:] == end).all())
    assert clip.tokenizer(["a red dog on the grass. " * 12])[0, -2] != end


def test_twins_are_the_first_row_of_every_grid_and_drawn_once(tmp_path: Path) -> None:
    class Watched(TinyModule):
        asked: ClassVar[list[str]] = []

        def sample(self, requests):
            self.asked.extend(request.prompt for request in requests)
            return super().sample(requests)

    trainer = tiny_trainer(
        tmp_path, 4, callbacks=[SampleGrid(str(tmp_path / "samples"), ["a <rex>"], 2, 2, 10, noun="dog")]
    )
    trainer.fit(Watched(), TinyData())
    assert Watched.asked.count("a dog") == 1 and Watched.asked.count("a <rex>") == 2 * 3
    first, last = (np.asarray(Image.open(tmp_path / "samples" / f"step-{at:06d}.png")) for at in (0, 4))
    rows = [slice(at, at + 150) for at in (8, 8 + (len(first) - 8) // 3)]
    assert np.array_equal(first[rows[0], 8:100], last[rows[0], 8:100]) and not np.array_equal(first, last)
