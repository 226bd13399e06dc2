"""Hyper-parameter search: a loop over trainings that asks Optuna what to try and tells it what came of it."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from src.data.commands import override
from src.data.ranges import Count, Seed
from src.run.cli import console
from src.run.errors import explain
from src.run.training import fit
from src.run.types import takes


class Search:
    """Trials share one journal file: the same command goes on. One process at a time.

    Args:
        folder: Holds the journal and the trials' run folders.
        num_trials: To finish in all; trials that failed do not count.
        monitor: Logged metric that is sought, such as ``val/loss``.
        direction: ``minimize`` or ``maximize``.
        space: Key of the training's configuration to its range: ``{low, high}`` with ``log`` or ``step`` if wanted,
            or a list of choices.
        seed: Seeds the sampler, together with the number of trials so far.

    Raises:
        ValueError: If a range or the direction is not understood.
    """

    def __init__(
        self, folder: str, num_trials: Count, monitor: str, direction: str, space: Mapping[str, Any], seed: Seed = 0
    ) -> None:
        if direction not in ("minimize", "maximize"):
            raise ValueError(f"hpo.direction is {direction!r}; choose minimize or maximize")
        self.folder, self.num_trials, self.monitor, self.direction = Path(folder), num_trials, monitor, direction
        self.space = {key: _distribution(key, values) for key, values in space.items()}
        self.seed = seed

    def run(self, cfg: DictConfig) -> dict[str, str]:
        """Train until enough trials have finished; return where the best one is.

        Args:
            cfg: The configuration of one training; every trial changes a copy.

        Raises:
            ValueError: If a key of the space is not in ``cfg``, nothing logs ``monitor``, or no trial finished.
        """
        unknown = [key for key in self.space if not takes(cfg, key)]
        if unknown:
            raise ValueError(
                f"hpo.space names {unknown[0]}, which this experiment does not have; hpo=rate searches the learning "
                "rate alone, which every method has"
            )
        steps, interval = cfg.trainer.get("max_steps", -1), cfg.trainer.get("val_check_interval")
        is_validated = self.monitor.startswith("val/") and "frontier" not in cfg.get("callbacks", {})
        if is_validated and isinstance(interval, int) and 0 < steps < interval:
            raise ValueError(
                f"a search asks for {self.monitor}, but trainings of trainer.max_steps={steps} end before the first "
                f"validation; give trainer.val_check_interval={steps}, or more steps than {interval}"
            )
        if cfg.trainer.devices not in (1, "1"):
            raise ValueError("a search needs trainer.devices=1: every further rank would try values of its own")
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.folder / ".lock", timeout=0):
                return self._search(cfg)
        except Timeout:
            raise ValueError(f"another process is searching in {self.folder}; wait for it, or set name=OTHER") from None

    def _search(self, cfg: DictConfig) -> dict[str, str]:
        study = self._study()
        tries = 0
        # A space in which everything fails must end, too.
        while _finished(study) < self.num_trials and tries < 2 * self.num_trials:
            tries += 1
            self._try(study, cfg)
        if not _finished(study):
            raise ValueError(f"all {tries} trials failed; {self.folder}/*/error.txt say why")
        return self._best(study)

    def _study(self) -> optuna.Study:
        """The journal's study; what a killed process left running is tried again."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage = JournalStorage(JournalFileBackend(str(self.folder / "journal.log")))
        study = optuna.create_study(
            storage=storage,
            study_name="search",
            direction=optuna.study.StudyDirection[self.direction.upper()],
            load_if_exists=True,
        )
        # The journal holds trials, not the sampler's random numbers: from the same seed, a search that goes on would
        # suggest its first trials again.
        study.sampler = optuna.samplers.TPESampler(seed=self.seed + len(study.get_trials(deepcopy=False)))
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            study.tell(trial.number, state=TrialState.FAIL)
            study.enqueue_trial(trial.params)
        return study

    def _try(self, study: optuna.Study, cfg: DictConfig) -> None:
        """One training; its failure is a failed trial."""
        trial = study.ask(self.space)
        run_dir = self.folder / f"trial-{trial.number:03d}"
        chosen = cfg.copy()
        for key, value in {**trial.params, "paths.run_dir": str(run_dir), "resume": False}.items():
            OmegaConf.update(chosen, key, value, force_add=True)
        console.rule(f"trial {trial.number}, {_finished(study)} of {self.num_trials} finished", style="dim")
        console.print(_told(trial.params), highlight=False)
        try:
            fitted = fit(chosen)
        except Exception as error:
            sentence = explain(error) or repr(error)
            run_dir.mkdir(parents=True, exist_ok=True)
            (run_dir / "error.txt").write_text(f"{_told(trial.params)}\n{sentence}\n", encoding="utf-8")
            console.print(f"this trial failed: {sentence}", style="red", highlight=False)
            study.tell(trial, state=TrialState.FAIL)
            return
        # Outside: a name that no training logs would fail every trial, one after the other.
        value = fitted.metric(self.monitor)
        study.tell(trial, value)
        console.print(f"{self.monitor} {value:.4f}", highlight=False)

    def _best(self, study: optuna.Study) -> dict[str, str]:
        best: FrozenTrial = study.best_trial
        return {
            "best trial": str(self.folder / f"trial-{best.number:03d}"),
            self.monitor: f"{best.value:.4f}",
            "its settings": _told(best.params),
        }


def _told(params: Mapping[str, Any]) -> str:
    shown = {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in params.items()}
    return " ".join(shlex.quote(override(*one)) for one in shown.items())


def _finished(study: optuna.Study) -> int:
    return len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))


def _distribution(key: str, values: Any) -> BaseDistribution:
    if isinstance(values, list):
        return CategoricalDistribution(values)
    if not isinstance(values, Mapping) or not {"low", "high"} <= set(values):
        raise ValueError(f"hpo.space.{key} is {values}; give a list of choices or {{low: .., high: .., log: true}}")
    kind = IntDistribution if isinstance(values["low"], int) and isinstance(values["high"], int) else FloatDistribution
    return kind(**values)
