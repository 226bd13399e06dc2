"""What each feature of the task's own language model is worth: ``python -m experiments.feature_starts.study``.

The four quadrants of ``experiments.four_quadrants`` in small, each feature from its own best start (``Task``).
"""

from functools import cache
from pathlib import Path

from torch import Tensor

from experiments.four_quadrants.study import language_model
from experiments.starts import SEARCH_SEED, Task, made
from src.modules.llmdiff.encoder import EncodingCache, LLMEncoder
from src.modules.llmdiff.language_model import LanguageModel
from src.modules.llmdiff.options import EncodingOptions


class InMemory(EncodingCache):
    """The states of the few captions of this task, which no other process needs."""

    def __init__(self) -> None:
        super().__init__("never written")
        self.found: dict[str, Tensor] = {}

    def __contains__(self, key: object) -> bool:
        """Whether the states are there."""
        return key in self.found

    def read(self, key: str) -> Tensor | None:
        """The states, or None."""
        return self.found.get(key)

    def write(self, key: str, states: Tensor) -> None:
        """Keep the states."""
        self.found[key] = states


@cache
def own_language_model() -> LanguageModel:
    """A Llama of four blocks that has read colours and copied them."""
    folder = made("feature_starts/llm", lambda at: language_model(at, SEARCH_SEED))
    return LanguageModel.from_pretrained(str(folder))


def encoder(features: str) -> LLMEncoder:
    """Reads a feature of it; every adapter encodes for itself."""
    return LLMEncoder(own_language_model(), EncodingOptions(features=features), InMemory())


TASK = Task(Path(__file__).parent / "results", encoder, common_gain=0.5)


if __name__ == "__main__":
    TASK.run()
