"""The loop around trainings; the training itself is a formula here, so that the optimum is known."""

import sys
from pathlib import Path

import optuna
import pytest
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from optuna.trial import TrialState

import src.run
from src.run import search
from src.run.errors import explain
from src.run.search import Search
from src.run.training import Fitted

CONFIG = {
    "method": {"learning_rate": 1.0, "rank": 1},
    "paths": {"run_dir": "."},
    "resume": False,
    "trainer": {"devices": 1},
}
SPACE = {"method.learning_rate": {"low": 0.01, "high": 1.0, "log": True}, "method.rank": [1, 2]}


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[DictConfig]:
    """What was trained so far; the loss is least at a rate of 0.1, and every third training fails."""
    calls: list[DictConfig] = []

    def fit(cfg: DictConfig) -> Fitted:
        calls.append(cfg)
        if len(calls) % 3 == 0:
            raise ValueError("no memory left")
        return Fitted({}, {"val/loss": abs(cfg.method.learning_rate - 0.1) + cfg.method.rank})

    monkeypatch.setattr(search, "fit", fit)
    return calls


def searching(folder: Path, num_trials: int) -> Search:
    return Search(str(folder), num_trials, "val/loss", "minimize", SPACE)


def states(folder: Path) -> list[TrialState]:
    return [trial.state for trial in searching(folder, 1)._study().trials]


def test_failed_trials_do_not_count_and_say_why(trained: list[DictConfig], tmp_path: Path) -> None:
    found = searching(tmp_path, 6).run(OmegaConf.create(CONFIG))
    assert states(tmp_path).count(TrialState.COMPLETE) == 6
    assert states(tmp_path).count(TrialState.FAIL) == len(trained) - 6 == 2
    assert "no memory left" in (tmp_path / "trial-002" / "error.txt").read_text(encoding="utf-8")
    finished = [cfg for number, cfg in enumerate(trained, 1) if number % 3]
    best = min(finished, key=lambda cfg: abs(cfg.method.learning_rate - 0.1) + cfg.method.rank)
    assert found["best trial"] == best.paths.run_dir
    assert best.method.rank == 1


def test_the_same_command_goes_on(trained: list[DictConfig], tmp_path: Path) -> None:
    searching(tmp_path, 2).run(OmegaConf.create(CONFIG))
    searching(tmp_path, 2).run(OmegaConf.create(CONFIG))
    assert len(trained) == 2
    searching(tmp_path, 4).run(OmegaConf.create(CONFIG))
    assert states(tmp_path).count(TrialState.COMPLETE) == 4


def test_a_search_that_goes_on_suggests_something_new(trained: list[DictConfig], tmp_path: Path) -> None:
    for num_trials in (2, 4):
        searching(tmp_path, num_trials).run(OmegaConf.create(CONFIG))
    rates = [cfg.method.learning_rate for cfg in trained]
    assert len(set(rates)) == len(rates) > 4


def test_without_its_package_a_search_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    # None makes the import fail as it does where the package is absent.
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.delitem(sys.modules, "src.run.search")
    monkeypatch.delattr(src.run, "search")
    with pytest.raises(InstantiationException) as raised:
        instantiate({"_target_": "src.run.search.Search", "folder": "."})
    assert explain(raised.value) == 'this needs the package optuna; type: pip install -e ".[hpo]"'


def test_what_a_killed_process_was_trying_is_tried_again(trained: list[DictConfig], tmp_path: Path) -> None:
    one = searching(tmp_path, 1)
    lost = one._study().ask(one.space)
    one.run(OmegaConf.create(CONFIG))
    assert trained[0].method.learning_rate == lost.params["method.learning_rate"]
    assert states(tmp_path) == [TrialState.FAIL, TrialState.COMPLETE]


def test_a_space_that_always_fails_ends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fit(cfg: DictConfig) -> Fitted:
        raise ValueError("no")

    monkeypatch.setattr(search, "fit", fit)
    with pytest.raises(ValueError, match="all 4 trials failed"):
        searching(tmp_path, 2).run(OmegaConf.create(CONFIG))


@pytest.mark.parametrize(
    ("space", "sentence"),
    [
        ({"method.learnin_rate": [1, 2]}, "names method.learnin_rate"),
        ({"method.learning_rate": 0.1}, "give a list of choices"),
    ],
)
def test_a_wrong_space_is_said_before_training(
    trained: list[DictConfig], tmp_path: Path, space: dict, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        Search(str(tmp_path), 1, "val/loss", "minimize", space).run(OmegaConf.create(CONFIG))
    assert not trained


def test_ranges_become_distributions(tmp_path: Path) -> None:
    assert isinstance(searching(tmp_path, 1).space["method.learning_rate"], optuna.distributions.FloatDistribution)
