"""Metrics that differ by a number alone, such as the gains of a model's blocks: one figure for all of them."""

import io
import string
from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.figure import Figure
from PIL import Image

Curve = tuple[Sequence[float], Sequence[float]]
"""Steps and values."""
MAX_NAMED = 10
"""Lines that a legend names."""


def families(curves: Mapping[str, Curve]) -> dict[str, dict[str, Curve]]:
    """Curves by their names without the number at the end; most are a family of one."""
    found: dict[str, dict[str, Curve]] = {}
    for name, curve in curves.items():
        found.setdefault(name.rstrip(string.digits), {})[name] = curve
    return found


def family_figure(family: str, lines: Mapping[str, Curve]) -> Image.Image:
    """One line for each number, from dark to bright; a legend names the first, the last and some between."""
    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.subplots()
    last = len(lines) - 1
    named = {round(index * last / (MAX_NAMED - 1)) for index in range(MAX_NAMED)}
    for index, name in enumerate(sorted(lines, key=lambda name: (len(name), name))):
        x, y = lines[name]
        colour = matplotlib.colormaps["viridis"](0.9 * index / last)
        label = name.removeprefix(family) if index in named else None
        axes.plot(x, y, color=colour, linewidth=1.2, marker="." if len(x) < 30 else None, label=label)
    axes.set(title=family.rstrip("/"), xlabel="step")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right center", fontsize="small", frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return Image.open(buffer).convert("RGB")
