"""Build the W&B dashboard of this project: one section per family of metrics, and one that compares a sweep."""

from collections.abc import Mapping, Sequence
from typing import Any

import wandb_workspaces.reports.v2 as panels
import wandb_workspaces.workspaces as workspaces

STEP = "trainer/global_step"
KNOBS = ("method.optimizer.lr", "method.rates.modifier", "method.learner.rank", "trainer.max_steps", "seed")
"""Keys of the configuration that sweeps usually vary, the axes of their comparison."""
TESTED = ("concept/dino", "concept/clip_i", "concept/clip_t", "dino_gap_closed")
"""Metrics of an evaluation, without their prefix ``test/``."""
SCORES = ("val/dino", "val/clip_t", "val/loss")


def dashboard(entity: str, project: str, knobs: Sequence[str] = KNOBS) -> workspaces.Workspace:
    """Build a workspace that can be saved; nothing is sent.

    Args:
        entity: User or team.
        project: Project of the runs.
        knobs: Configuration keys to compare the runs of a sweep by.
    """
    sections = {
        "train": [_lines("train/loss"), _lines("train/instance_loss"), _matching("learning rate", "^lr-")],
        "val": [_lines("val/loss"), _lines("val/dino"), _lines("val/clip_t")],
        "test": [
            _bars(name)
            for name in ("test/concept/dino", "test/concept/clip_i", "test/concept/clip_t", "test/dino_gap_closed")
        ],
        "perf": [_lines(f"perf/{name}") for name in ("it_s", "samples_s", "peak_memory_gb", "hours_left")],
        "samples": _samples(),
        "sweep": _sweep(knobs),
    }
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name="atelier",
        sections=[_section(name, content) for name, content in sections.items()],
        settings=workspaces.WorkspaceSettings(x_axis=STEP, max_runs=50),
    )


def outline(workspace: workspaces.Workspace) -> Mapping[str, list[str]]:
    """List the titles of the panels of every section."""
    return {section.name: [_title(panel) for panel in section.panels] for section in workspace.sections}


def _section(name: str, content: list[Any]) -> workspaces.Section:
    return workspaces.Section(name=name, panels=content, is_open=True)


def _lines(metric: str) -> panels.LinePlot:
    return panels.LinePlot(title=metric, x=STEP, y=[metric])


def _matching(title: str, pattern: str) -> panels.LinePlot:
    return panels.LinePlot(title=title, x=STEP, metric_regex=pattern)


def _bars(metric: str) -> panels.BarPlot:
    return panels.BarPlot(title=metric, metrics=[metric], max_bars_to_show=50)


def _samples() -> list[Any]:
    return [
        panels.MediaBrowser(
            title="samples by step", media_keys=["samples/images"], grid_x_axis="step", grid_y_axis="index"
        ),
        panels.WeavePanelSummaryTable(table_name="samples/table"),
    ]


def _sweep(knobs: Sequence[str]) -> list[Any]:
    axes = [panels.ParallelCoordinatesPlotColumn(metric=panels.Config(knob)) for knob in knobs]
    axes += [panels.ParallelCoordinatesPlotColumn(metric=panels.SummaryMetric(score)) for score in SCORES]
    prompt, identity = panels.SummaryMetric("val/clip_t"), panels.SummaryMetric("val/dino")
    return [
        panels.ScatterPlot(title="identity and prompt", x=prompt, y=identity),
        panels.ParallelCoordinatesPlot(title="settings and scores", columns=axes),
        panels.ParameterImportancePlot(with_respect_to="val/dino"),
        panels.RunComparer(diff_only="split"),
    ]


def _title(panel: Any) -> str:
    return getattr(panel, "title", None) or getattr(panel, "table_name", None) or type(panel).__name__
