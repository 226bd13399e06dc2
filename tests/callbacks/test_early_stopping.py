"""Stopping where a concept gains no identity and loses the prompt."""

from pathlib import Path

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from src.callbacks.early_stopping import FrontierStop
from tests.callbacks.conftest import Colours, TinyData, TinyModule, assert_training_is_left_alone, tiny_trainer


def frontier(**options) -> FrontierStop:
    settings = {"prompts": ["a <rex>"], "texts": ["a dog"], "first_seed": 10, "every_n_steps": 1, "patience": 2}
    return FrontierStop(Colours(), Colours(), **(settings | options))


def test_it_stops_when_identity_stands_still_and_the_prompt_falls(tmp_path: Path, capsys) -> None:
    stop, logger = frontier(), CSVLogger(tmp_path, name="logs")
    trainer = tiny_trainer(tmp_path, 20, callbacks=[stop], logger=logger)
    trainer.fit(TinyModule(), TinyData())
    # Samples turn from red to green with every step, away from photo and text alike.
    first = stop.scores[0][1]
    assert first - stop.scores[-1][1] > 0.1 * first >= first - stop.scores[-2][1]
    assert 2 <= trainer.global_step == len(stop.scores) - 1 < 20
    assert f"stopped at step {trainer.global_step}: val/dino has not grown" in capsys.readouterr().err
    logger.save()
    header, *rows = (Path(logger.log_dir) / "metrics.csv").read_text(encoding="utf-8").splitlines()
    assert {"val/dino", "val/clip_t"} <= set(header.split(","))
    assert trainer.callback_metrics["val/dino"].item() == pytest.approx(stop.scores[-1][0])


@pytest.mark.parametrize("options", [{"prompt_drop": 0.99}, {"patience": 30}, {"min_delta": -1.0}])
def test_it_goes_on_while_one_of_the_two_holds(tmp_path: Path, options: dict) -> None:
    trainer = tiny_trainer(tmp_path, 8, callbacks=[frontier(**options)])
    trainer.fit(TinyModule(), TinyData())
    assert trainer.global_step == 8


@pytest.mark.parametrize(
    ("dino", "prompt", "stops"),
    [
        ([0.5, 0.55], [0.3, 0.25], False),  # one score without growth, and patience is two
        ([0.5, 0.55, 0.59], [0.3, 0.28, 0.25], True),  # growth below 0.1 is none; a sixth of the prompt is lost
        ([0.5, 0.55, 0.62], [0.3, 0.28, 0.25], False),  # growth counts from the best, not from the last
        ([0.5, 0.55, 0.59], [0.3, 0.20, 0.28], False),  # less than a tenth of the prompt is lost now
    ],
)
def test_it_stops_beyond_the_frontier(dino: list[float], prompt: list[float], stops: bool) -> None:
    stop = frontier(min_delta=0.1, prompt_drop=0.1, patience=2)
    stop.scores = list(zip(dino, prompt, strict=True))
    assert stop.beyond() == stops


def test_scoring_leaves_the_loss_trace_alone(tmp_path: Path) -> None:
    assert_training_is_left_alone(frontier(patience=30), tmp_path)


def test_a_resumed_training_remembers_its_scores(tmp_path: Path) -> None:
    first = frontier(patience=30)
    writer = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=1)
    tiny_trainer(tmp_path, 3, callbacks=[first, writer], enable_checkpointing=True).fit(TinyModule(), TinyData())
    second = frontier(patience=30)
    trainer = tiny_trainer(tmp_path, 5, callbacks=[second])
    trainer.fit(TinyModule(), TinyData(), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert len(first.scores) == 4 and second.scores[:4] == first.scores and len(second.scores) == 6


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"texts": ["a dog", "a cat"]}, "1 prompts need as many texts, got 2"),
        ({"prompts": [], "texts": []}, "number of prompts"),
        ({"patience": 0}, "patience=0"),
        ({"prompt_drop": 1.0}, "prompt_drop=1.0"),
    ],
)
def test_options_out_of_range_are_said(options: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        frontier(**options)


def test_without_photos_it_says_so(tmp_path: Path) -> None:
    data = TinyData()
    data.photos = []
    with pytest.raises(ValueError, match="the datamodule's photos"):
        tiny_trainer(tmp_path, 2, callbacks=[frontier()]).fit(TinyModule(), data)
