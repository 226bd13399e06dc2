"""Banks of several subjects that an evaluation needs, trained on the way."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from src.data.images import find_images
from src.eval.scored_concept import ConceptSource
from src.trained_once import Training, as_overrides, composed, files_digest, train_missing, training_digest


class Suite:
    """Several subjects and the experiment that learns each of them.

    Args:
        experiment: Name of a file in ``conf/experiment``.
        subjects: Concept name to what its training sets, such as ``class_noun`` and ``data.instance_dir``.
        training: What every training sets beside, nested as in the configuration: the arm of an ablation.
        cache_dir: Where banks are kept.

    Raises:
        ValueError: If there is no subject.
    """

    def __init__(
        self,
        experiment: str,
        subjects: Mapping[str, Mapping[str, Any]],
        cache_dir: str,
        training: Mapping[str, Any] | None = None,
    ) -> None:
        if not subjects:
            raise ValueError("the suite has no subject; give suite.subjects.NAME.class_noun=NOUN and its folder")
        self.experiment, self.subjects, self.cache_dir = experiment, subjects, Path(cache_dir)
        self.training = as_overrides(training or {})

    def sources(self) -> dict[str, ConceptSource]:
        """What is known of each subject before its bank is trained."""
        return {
            name: ConceptSource(cfg.method.class_noun, cfg.method.references) for name, cfg in self._configs.items()
        }

    def trained(self, train: bool = True) -> dict[str, str]:
        """``bank.NAME``, a key of the evaluation's configuration, to the file; what is missing is trained now.

        Raises:
            ValueError: If banks are missing and not to be trained, or a folder holds no images.
        """
        trainings = [self._training(name, cfg) for name, cfg in self._configs.items()]
        train_missing(trainings, train)
        return {f"bank.{training.name}": str(training.path) for training in trainings}

    @cached_property
    def _configs(self) -> dict[str, DictConfig]:
        return {name: composed(self._overrides(name)) for name in self.subjects}

    def _overrides(self, name: str) -> tuple[str, ...]:
        subject = as_overrides(self.subjects[name])
        return (f"+experiment={self.experiment}", f"concept={name}", *subject, *self.training)

    def _training(self, name: str, cfg: DictConfig) -> Training:
        # Finding images raises a sentence where there is none, before the first subject is trained.
        content = [files_digest(find_images(path)) for path in (cfg.data.instance_dir, cfg.data.class_dir) if path]
        path = self.cache_dir / f"{name}-{training_digest(cfg, content)}.safetensors"
        return Training(name, "concept bank", path, self._overrides(name))
