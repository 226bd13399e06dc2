"""Hydra's and our own errors in one sentence: what came, what was expected, what to type."""

import errno
import re
import traceback
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from functools import partial
from pathlib import Path

import yaml
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig
from omegaconf.errors import (
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from src.run.other_programs import of_other_programs
from src.run.targets import CONF
from src.run.types import options, takes
from src.run.words import needs_quotes

EXTRAS = {"lightly": "pretrain", "optuna": "hpo", "starlette": "desk", "uvicorn": "desk"}
"""Package that is imported with a part of the configuration, to the extra that brings it."""
LAUNCHERS = {"joblib": "joblib", "submitit_local": "slurm", "submitit_slurm": "slurm"}
"""Hydra's launcher to the extra that brings it."""


PLACES = {
    errno.EACCES: "may not be written to or read",
    errno.EPERM: "may not be written to or read",
    errno.EROFS: "is on a file system that is read-only",
    errno.ENOTDIR: "stands below a file, not a folder",
    errno.EEXIST: "is a file where a folder is expected",
    errno.EISDIR: "is a folder where a file is expected",
    errno.ENAMETOOLONG: "is too long a name",
}
"""What is wrong with a place, by the number of the error."""


def explain(error: Exception) -> str | None:
    """Say what the user can do about an error, or None if it is not theirs."""
    if extra := _missing_extra(error):
        return extra
    if isinstance(error, InstantiationException):
        return _failed_part(error)
    if isinstance(error, MissingConfigException):
        return _missing_file(error)
    if isinstance(error, OverrideParseException):
        return needs_quotes(error.override)
    if isinstance(error, ConfigCompositionException):
        return _refused_override(error)
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} is not set; add {error.full_key}=VALUE"
    if isinstance(error, InterpolationResolutionError):
        unset = re.search(r"Environment variable '(\w+)' not found", str(error))
        if unset:
            return f"the environment variable {unset.group(1)} is not set; SLURM sets those that trainer=slurm reads"
        if "raised while resolving interpolation: " in str(error):
            # What a resolver of ours said, in OmegaConf's wrapping.
            return str(error).splitlines()[0].partition("raised while resolving interpolation: ")[2]
    if isinstance(error, OmegaConfBaseException):
        key = f"the value of {error.full_key}" if error.full_key else "a value of the configuration"
        advice = "a key after $ must be there, and a $ that means none is written \\$"
        return f"{key} cannot be read: {str(error).splitlines()[0]}; {advice}"
    if isinstance(error, HydraException):
        return f"this command cannot be read: {str(error).splitlines()[0]}; --help lists the keys"
    if isinstance(error, yaml.YAMLError):
        return _bad_yaml(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" at {error.filename}" if error.filename else ""
        return f"the disk is full{where}; make room and give the same command again: what is finished is kept"
    if isinstance(error, OSError) and error.errno in PLACES and error.filename:
        return f"{error.filename} {PLACES[error.errno]}; give another place, such as paths.root=FOLDER"
    if "EADDRINUSE" in str(error):
        port = re.search(r"port: (\d+)", str(error))
        which = f"port {port.group(1)}" if port else "a port"
        return f"{which} is in use; write a free one before the command, such as MASTER_PORT=29511"
    if isinstance(error, ValueError) and (elsewhere := _raised_elsewhere(error)):
        return f"a value does not fit: {error} (said by {elsewhere}); HYDRA_FULL_ERROR=1 shows the whole way there"
    # Hugging Face's loaders point to a trace that is not shown.
    told = re.sub(r"\s*Please check out the root cause.*", "", str(error), flags=re.DOTALL)
    return told if isinstance(error, ValueError | OSError) else None


def _raised_elsewhere(error: Exception) -> str | None:
    """Where an error comes from that no ``raise`` of ours made, such as Python's own; None for ours."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return None
    path = Path(frames[-1].filename)
    is_ours = "site-packages" not in path.parts and (frames[-1].line or "").lstrip().startswith("raise")
    return None if is_ours else f"{path.parent.name}/{path.name}, line {frames[-1].lineno}"


def _bad_yaml(error: yaml.YAMLError) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or "it is no YAML"
    where = f"{mark.name}, line {mark.line + 1}" if mark else "a configuration file"
    return f"{where} cannot be read: {problem}; mend that line"


def _missing_extra(error: BaseException | None) -> str | None:
    """How to install the optional package whose absence is the cause, however deep, of an error."""
    while error is not None:
        package = (getattr(error, "name", None) or "").partition(".")[0] if isinstance(error, ImportError) else ""
        if package in EXTRAS:
            return f'this needs the package {package}; type: pip install -e ".[{EXTRAS[package]}]"'
        error = error.__cause__
    return None


def _failed_part(error: InstantiationException) -> str | None:
    """What a constructor said, without Hydra's wrapping."""
    cause = error.__cause__
    unexpected = re.search(r"unexpected keyword argument '(\w+)'", str(cause))
    if unexpected:
        where = re.search(r"full_key: (\S+)", str(error))
        part = where.group(1) if where else "a part of the configuration"
        return f"{part} takes no argument {unexpected.group(1)!r}; check the spelling against conf/{part.split('.')[0]}"
    return explain(cause) if isinstance(cause, Exception) else None


def _missing_file(error: MissingConfigException) -> str:
    group, _, name = (error.missing_cfg_file or "").partition("/")
    launcher = LAUNCHERS.get(name.removeprefix("launcher/"))
    if group == "hydra" and launcher:
        return f'{group}/{name} needs a package; type: pip install -e ".[{launcher}]"'
    if group == "hydra" and name.startswith("launcher/"):
        return f"there is no launcher {name.removeprefix('launcher/')!r}; choose one of: {', '.join(LAUNCHERS)}"
    folder = CONF / group
    choices = sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))
    if group == "method" and "/" in name:
        # A method is typed by its name alone; its file is named by what it is for.
        name, _, role = name.partition("/")
        choices = [choice.removesuffix(f"/{role}") for choice in choices if choice.endswith(f"/{role}")]
    if not name or not choices:
        return f"there is no file {error.missing_cfg_file} among the configurations; leave --config-name out"
    close = get_close_matches(name, choices, n=1)
    advice = f"did you mean {group}={close[0]}?" if close else f"choose one of: {', '.join(choices)}"
    return f"there is no {group} {name!r}; {advice}"


def _refused_override(error: ConfigCompositionException) -> str:
    cause = error.__cause__
    told = " ".join(str(error).split())
    if ambiguous := re.match(r"Ambiguous value for argument '(.*?)' 1\. To use it", told):
        return needs_quotes(ambiguous[1])
    if missing := re.match(r"Could not delete from config\. '(.*)' does not exist", told):
        return f"there is no key {missing[1]} to leave out; --help lists the keys"
    if unfit := re.match(r"Error merging override (.*)", told):
        return f"{unfit[1].lstrip('+')} is of another kind than what stands there; --help shows what does"
    typed = re.search(r"use \+(([^=\s]+)=.*)$", str(error), re.DOTALL)
    if typed is None or not isinstance(cause, OmegaConfBaseException) or cause.parent_node is None:
        return f"{told.rstrip('.')}; --help lists the keys"
    override, key = typed.groups()
    config = cause.parent_node._get_root()
    value = override.removeprefix(key)
    if advice := of_other_programs(key, value, str(config.get("task")), partial(takes, config)):
        return f"there is no key {key}; type {advice}"
    known = [path for path in _paths(config) if not path.startswith("hydra.") and not key.startswith(f"{path}.")]
    close = _same_leaf(key, known) or get_close_matches(key, known, n=1, cutoff=0.7)
    # Only now: constructors take seconds to import.
    close = close or _same_leaf(key, _paths(config, with_options=True))
    if close:
        return f"there is no key {key}; did you mean {close[0]}{value}?"
    return f"there is no key {key}; --help lists those that there are"


def _same_leaf(key: str, known: Iterable[str]) -> list[str]:
    return [path for path in known if path.rpartition(".")[2] == key.rpartition(".")[2]]


def _paths(config: DictConfig, prefix: str = "", with_options: bool = False) -> Iterator[str]:
    """Dotted names of every key, inner ones included; with what parts take beside, if wanted."""
    taken = options(str(config._get_node("_target_"))) if with_options and "_target_" in config else {}
    yield from (f"{prefix}{name}" for name in taken)
    for key in map(str, config):
        yield f"{prefix}{key}"
        node = config._get_node(key)
        if isinstance(node, DictConfig) and not node._is_none() and not node._is_missing():
            yield from _paths(node, f"{prefix}{key}.", with_options)
