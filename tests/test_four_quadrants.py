"""Four colours in reading order: what no bag of words can paint, LLMDiff must. A quarter of an hour on a busy core."""

import pytest

from experiments.four_quadrants.study import all_four_right, base_model, language_model, with_adapter
from src.modules.backbones.unet import UNetBackbone
from src.modules.llmdiff.language_model import LanguageModel

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return language_model(tmp_path_factory.mktemp("llm"))


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> UNetBackbone:
    return base_model(tmp_path_factory.mktemp("sd"))


def share_right(backbone: UNetBackbone, llm: LanguageModel, arm: str) -> float:
    right = all_four_right(with_adapter(backbone, llm, arm))
    return sum(right) / len(right)


def test_the_base_model_can_paint_what_is_asked(backbone: UNetBackbone) -> None:
    right = all_four_right(backbone.pipeline)
    assert sum(right) > 0.9 * len(right)


def test_the_block_wise_score_carries_word_order(backbone: UNetBackbone, llm: LanguageModel) -> None:
    assert share_right(backbone, llm, "llmdiff") > 0.9


def test_embeddings_carry_no_word_order(backbone: UNetBackbone, llm: LanguageModel) -> None:
    # 24 orders of the four colours.
    assert share_right(backbone, llm, "embed") < 0.2


def test_a_bias_of_its_own_for_each_position_tells_positions(backbone: UNetBackbone, llm: LanguageModel) -> None:
    """So with the default start even embeddings are no bag of words."""
    assert share_right(backbone, llm, "embed, rows") > 0.9
