"""The look of every page that we write or serve: ``page.css`` beside this file, and nothing from a network."""

from pathlib import Path

STYLESHEET = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
"""Colours, type, tables, grids of pictures, plots and folded parts, in light and in dark."""
