"""The command that a training ends with, without what it need not say."""

import shlex
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from src.data.commands import command
from src.run.cli import respelled
from src.run.targets import CONF
from src.run.types import options

CHOSEN = ("method", "backbone")
"""Groups that other defaults depend on."""


def without_defaults(line: str) -> str:
    """Leave out settings that stand at their defaults; what the command does is the same.

    Args:
        line: ``python generate.py key=value ...`` as ``src.data.commands.command`` writes it.
    """
    _, script, *words = shlex.split(line)
    given = {one.key_or_group: one.value() for one in OverridesParser.create().parse_overrides(words)}
    chosen = [word for word in words if word.partition("=")[0] in CHOSEN]
    # In a job, Hydra knows the folder already.
    is_job = GlobalHydra.instance().is_initialized()
    with nullcontext() if is_job else initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(Path(script).stem, respelled(chosen, script))

    def default(key: str) -> Any:
        part, _, name = key.rpartition(".")
        target = OmegaConf.select(cfg, f"{part}._target_") if part else None
        own = OmegaConf.select(cfg, key, default=options(target or "").get(name))
        # What a method leaves open has the backbone's own setting.
        return OmegaConf.select(cfg, f"backbone.sampling.{name}") if own is None else own

    return command(script, {key: value for key, value in given.items() if key in CHOSEN or default(key) != value})
