"""What a figure of a comparison shows."""

import pytest
from matplotlib.axes import Axes

from src.eval.statistics.bootstrap import Interval, bootstrap_mean
from src.eval.sweeps.page import comparison_figure, curves_figure, in_order


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


def test_curves_have_a_panel_for_each_score(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line per point, with its means where the numbers are, a little apart."""
    drawn: list = []
    stock = Axes.errorbar
    monkeypatch.setattr(
        Axes, "errorbar", lambda *told, **named: drawn.append((*told[1:], named)) or stock(*told, **named)
    )
    means = {"one": {"a": [Interval(1, 0, 3), Interval(2, 1.5, 2.5)], "b": [Interval(0, 0, 0)] * 2}}
    means["two"] = {"a": [Interval(5, 4, 6), Interval(6, 5, 7)], "b": [Interval(0, 0, 0)] * 2}
    picture = curves_figure("number", [1, 3], means)
    assert picture.width > picture.height and len(drawn) == 4
    across, up, ends, named = drawn[1]
    assert across == pytest.approx([1.025, 3.025]) and up == [5, 6] and named["label"] == "two"
    assert drawn[0][2] == [[1, 0.5], [2, 0.5]]
