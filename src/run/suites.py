"""What an evaluation needs trained on the way: the banks of several subjects, or one LLMDiff adapter."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from src.data.commands import override
from src.data.mentions import mentioned
from src.data.request import Request
from src.data.subject_folder import read_subjects
from src.eval.concepts import ConceptSource
from src.run.record import record_digest, training_record
from src.run.targets import CONF, located
from src.run.trained_once import Training, as_overrides, composed, train_missing

JOINED = "+"
"""Between keys of the evaluation's configuration that one file is for: a combination of subjects."""
Files = str | list[str]


def trained(suite: "Suite | AdapterSuite", requests: Sequence[Request] = ()) -> dict[str, Files]:
    """Keys of the evaluation's configuration to what a suite trains; what is missing is trained now.

    Args:
        suite: What is trained.
        requests: What will be drawn with it.

    Raises:
        ValueError: As in ``train_missing``, or if a folder holds no images.
    """
    trainings = suite.trainings(requests)
    train_missing(list(trainings.values()))
    files: dict[str, list[str]] = {}
    for keys, training in trainings.items():
        for key in keys.split(JOINED):
            files.setdefault(key, []).append(str(training.path))
    return {key: each if len(each) > 1 else each[0] for key, each in files.items()}


def learns(method: str) -> str:
    """Name of the folder of ``conf/method`` that learns what a method draws: its own, or that which its class names.

    Args:
        method: The choice of ``method=``, such as ``omg/draw``.

    Raises:
        ValueError: If neither learns anything.
    """
    name = method.partition("/")[0]
    if (CONF / "method" / name / "train.yaml").is_file():
        return name
    drawing = CONF / "method" / name / "draw.yaml"
    other = getattr(located(OmegaConf.load(drawing)._target_), "method", None) if drawing.is_file() else None
    if other is None:
        raise ValueError(f"{name} learns no subject; choose a method that does by suite.method=NAME")
    return str(other)


class Suite:
    """Several subjects and the experiment that learns each of them.

    Args:
        experiment: Name of a file in ``conf/experiment``.
        subjects: Concept name to what its training sets, such as ``class_noun`` and ``data.instance_dir``.
        training: What every training sets beside, nested as in the configuration: the arm of an ablation.
        cache_dir: Where banks are kept.
        method: What learns the subjects, see ``learns``.

    Raises:
        ValueError: If there is no subject, or the method learns nothing.
    """

    def __init__(
        self,
        experiment: str,
        subjects: Mapping[str, Mapping[str, Any]],
        cache_dir: str,
        training: Mapping[str, Any] | None = None,
        method: str = "latexblend",
    ) -> None:
        if not subjects:
            raise ValueError("the suite has no subject; give suite.subjects.NAME.class_noun=NOUN and its folder")
        self.method = learns(method)
        self.experiment, self.subjects, self.cache_dir = experiment, subjects, Path(cache_dir)
        self.training = as_overrides(training or {})

    def sources(self) -> dict[str, ConceptSource]:
        """What is known of each subject before its bank is trained."""
        subjects = {name: cfg.method.learner.subject for name, cfg in self._configs.items()}
        return {name: ConceptSource(subject.class_noun, subject.references) for name, subject in subjects.items()}

    def trainings(self, requests: Sequence[Request] = ()) -> dict[str, Training]:
        """``bank.NAME``, a key of the evaluation's configuration, to its training.

        A method that learns subjects together learns each combination that a request mentions, ``bank.A+bank.B``.

        Args:
            requests: What will be drawn.

        Raises:
            ValueError: If a folder holds no images.
        """
        if not self._joint:
            return {f"bank.{name}": self._training((name,)) for name in self.subjects}
        named = [tuple(name for name in self.subjects if name in mentioned(one.prompt)) for one in requests]
        combinations = [names for names in dict.fromkeys(named) if names]
        return {JOINED.join(f"bank.{name}" for name in names): self._training(names) for names in combinations}

    @cached_property
    def _configs(self) -> dict[str, DictConfig]:
        return {name: composed(self._overrides((name,))) for name in self.subjects}

    @cached_property
    def _joint(self) -> bool:
        """Whether the method learns several subjects in one training."""
        learner = located(OmegaConf.load(CONF / "method" / self.method / "train.yaml").learner._target_)
        return getattr(learner, "joint", False)

    def _overrides(self, names: Sequence[str]) -> tuple[str, ...]:
        first, *others = names
        chosen = (f"+experiment={self.experiment}", f"method={self.method}/train", override("concept", first))
        more: tuple[str, ...] = ("data=combination",) if self._joint else ()
        for name in others:
            told = {key: value for key, value in self.subjects[name].items() if key != "data"}
            more += as_overrides({**told, **self.subjects[name].get("data", {})}, f"data.others.{name}.")
        if others:
            # As many steps for each subject as it would get alone.
            steps = len(names) * self._configs[first].trainer.max_steps
            more += (override("trainer.max_steps", steps),)
        return (*chosen, *more, *as_overrides(self.subjects[first]), *self.training)

    def _training(self, names: Sequence[str]) -> Training:
        # What cannot be read raises a sentence here, before the first subject is trained.
        overrides = self._overrides(names)
        cfg = composed(overrides) if len(names) > 1 else self._configs[names[0]]
        path = self.cache_dir / f"{'_'.join(names)}-{record_digest(training_record(cfg))}.safetensors"
        return Training(" and ".join(names), "concept bank", path, overrides)


class FolderSuite(Suite):
    """The subjects of a folder with the layout of DreamBench++: one image each, and prompts of their own.

    Args:
        folder: See ``src.data.subject_folder``.
        experiment: As of ``Suite``.
        cache_dir: As there.
        training: As there.
        method: As there.
        categories: Which subjects, by their category; None for all.

    Raises:
        ValueError: As ``read_subjects`` and ``Suite``.
    """

    def __init__(
        self,
        folder: str,
        experiment: str,
        cache_dir: str,
        training: Mapping[str, Any] | None = None,
        method: str = "latexblend",
        categories: Sequence[str] | None = None,
    ) -> None:
        self.read = read_subjects(folder, categories)
        subjects = {
            one.name: {"class_noun": one.class_noun, "data": {"instance_dir": str(one.image)}} for one in self.read
        }
        super().__init__(experiment, subjects, cache_dir, training, method)

    def sources(self) -> dict[str, ConceptSource]:
        """What the folder says of each subject."""
        return {one.name: ConceptSource(one.class_noun, str(one.image), one.prompts, one.category) for one in self.read}


class AdapterSuite:
    """One adapter and the experiment that learns it.

    Args:
        experiment: Name of a file in ``conf/experiment``.
        cache_dir: Where adapters are kept.
        training: What the training sets beside, nested as in the configuration: the arm of an ablation.
        given: An adapter that the evaluation was given; there must be none.

    Raises:
        ValueError: If there is one, or the training names what is not there.
    """

    def __init__(
        self, experiment: str, cache_dir: str, training: Mapping[str, Any] | None = None, given: str | None = None
    ) -> None:
        if given is not None:
            raise ValueError(f"adapter={given} is given, but the suite trains an adapter; leave one of the two out")
        self.cache_dir, self.training = Path(cache_dir), as_overrides(training or {})
        # Nobody watches: one validation, at the end.
        own = (f"+experiment={experiment}", "trainer.val_check_interval=${trainer.max_steps}")
        self.overrides = (*own, *self.training)
        # Composed at once, which looks at all that the training names.
        self.config = composed(self.overrides)

    def sources(self) -> dict[str, ConceptSource]:
        """An adapter has no subject."""
        return {}

    def trainings(self, requests: Sequence[Request] = ()) -> dict[str, Training]:
        """``adapter``, a key of the evaluation's configuration, to its training."""
        path = self.cache_dir / f"{record_digest(training_record(self.config))}.safetensors"
        name = f"the adapter {path.stem} ({', '.join(self.training) or self.config.name})"
        return {"adapter": Training(name, "adapter", path, self.overrides)}
