"""Generators by their configuration: a model is loaded once, however often a page moves a fader."""

import json
import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from src.run.targets import build

MOST_MODELS, MOST_GENERATORS = 3, 16


class Parts:
    """Builds generators as ``build`` does, from parts that it has already.

    A file that changes on the disk makes new parts. What was unused for the longest time goes first.
    """

    def __init__(self) -> None:
        self._parts: OrderedDict[str, Any] = OrderedDict()
        self._generators: OrderedDict[str, Any] = OrderedDict()

    def generator(self, node: DictConfig) -> Any:
        """Return the generator of ``cfg.method``, loaded or as it was loaded before.

        Raises:
            ValueError: As its parts do.
        """
        tree: Any = OmegaConf.to_container(node, resolve=True)
        key = _key(tree)
        if key in self._generators:
            self._generators.move_to_end(key)
            return self._generators[key]
        inner = {name: one for name, one in tree.items() if isinstance(one, Mapping) and "_target_" in one}
        own = {name: one for name, one in tree.items() if name not in inner}
        loaded = {name: self._part(one) for name, one in inner.items()}
        made = build({**own, "_partial_": True})(**loaded)
        self._generators[key] = made
        while len(self._generators) > MOST_GENERATORS:
            self._generators.popitem(last=False)
        return made

    def _part(self, tree: Mapping[str, Any]) -> Any:
        key = _key(tree)
        if key not in self._parts:
            while len(self._parts) >= MOST_MODELS:
                self._parts.popitem(last=False)
                self._generators.clear()  # They hold the model that is to go.
            self._parts[key] = build(dict(tree))
        self._parts.move_to_end(key)
        return self._parts[key]

    def forget(self) -> None:
        """Let go of everything, such as when memory runs out."""
        self._parts.clear()
        self._generators.clear()


def _key(tree: Any) -> str:
    """All that a part depends on: its settings, and when the files and folders that these name last changed."""
    return json.dumps([tree, list(_stamps(tree))], sort_keys=True, default=str)


def _stamps(value: Any) -> Iterator[tuple[int, int]]:
    if isinstance(value, Mapping):
        for inner in value.values():
            yield from _stamps(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _stamps(inner)
    elif isinstance(value, str) and len(value) < 1000 and os.path.lexists(value):
        told = Path(value).stat()
        yield told.st_mtime_ns, told.st_size
