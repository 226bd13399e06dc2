"""What a figure of a comparison shows."""

import pytest

from src.eval.statistics.bootstrap import bootstrap_mean
from src.eval.sweeps.page import comparison_figure, in_order


@pytest.mark.parametrize(
    ("labels", "joined"),
    [
        (["method.alpha=0.2", "method.alpha=0.6", "method.alpha=5.0"], True),
        (["method.top_k=4", "method.top_k=1"], True),
        (["method.alpha=0.2", "method.alpha=5.0", "method.alpha=1.0"], False),
        (["components=plain", "components=pfb"], False),
        (["rate=1 steps=400", "rate=2 steps=400"], False),
    ],
)
def test_only_values_in_order_are_joined(labels: list[str], joined: bool) -> None:
    assert in_order(labels) is joined


def test_a_label_may_hold_dollars() -> None:
    means = [{"s_txt": bootstrap_mean([0.1, 0.2, 0.3])}] * 2
    assert comparison_figure(["prompt=from $5_", "prompt=to $x^{"], means, [("s_txt", "s_txt")]).width > 100
