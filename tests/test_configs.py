"""Every file under conf/ composes, and what it builds takes exactly the keys that it is given."""

import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import get_object
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from src.data.commands import override
from src.run.cli import addable
from src.run.trained_once import as_overrides
from src.run.types import check_types, options, takes

CONF = Path(__file__).parents[1] / "conf"
FILES = sorted(path.relative_to(CONF).with_suffix("").as_posix() for path in CONF.rglob("*.yaml"))
PRIMARIES = [name for name in FILES if "/" not in name]
MEMBERS = [name for name in FILES if "/" in name]
OVERLAYS = [name for name in MEMBERS if name.split("/")[0] in ("experiment", "sweep", "recipe")]
RESERVED = {"_target_", "_partial_", "_convert_", "_recursive_", "_args_"}
pytestmark = pytest.mark.usefixtures("configurations")


def groups_of(primary: str) -> set[str]:
    """Config groups in the defaults list of an entry point."""
    entries = OmegaConf.load(CONF / f"{primary}.yaml").defaults
    return {str(key).removeprefix("optional ") for entry in entries if isinstance(entry, DictConfig) for key in entry}


def composed(primary: str, *overrides: str) -> DictConfig:
    """An entry point's configuration without Hydra's own part, which ``${hydra:...}`` may still read."""
    cfg = compose(primary, overrides=list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    plain = cfg.copy()
    OmegaConf.set_struct(plain, False)
    with open_dict(plain):
        del plain["hydra"]
    return plain


def with_member(name: str, *overrides: str) -> DictConfig:
    """Compose a member of a group with the entry point that it names in a comment, or the first that has its group."""
    group, _, member = name.partition("/")
    named = re.search(r"python (\w+)\.py", (CONF / f"{name}.yaml").read_text(encoding="utf-8"))
    owners = [primary for primary in sorted(PRIMARIES, key="train".__ne__) if group in groups_of(primary)]
    primary = named.group(1) if named and named.group(1) in PRIMARIES else (owners or ["train"])[0]
    plus = "" if group in groups_of(primary) else "+"
    return composed(primary, f"{plus}{group}={member}", *overrides)


def built(node: Any, path: str = "") -> Iterator[tuple[str, DictConfig]]:
    """Every node with a ``_target_``; references to other nodes are left to their own place."""
    if isinstance(node, ListConfig):
        for index in range(len(node)):
            yield from built(node._get_node(index), f"{path}[{index}]")
    if isinstance(node, DictConfig) and not (node._is_none() or node._is_missing() or node._is_interpolation()):
        if "_target_" in node:
            yield path, node
        for key in node:
            yield from built(node._get_node(key), f"{path}.{key}".lstrip("."))


def check_keys(cfg: DictConfig) -> list[str]:
    """Import what is to be built and compare its parameters with the keys; returns where something was built."""
    checked = []
    for path, node in built(cfg):
        parameters = inspect.signature(get_object(node._target_)).parameters
        keys = {str(key) for key in node} - RESERVED
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            assert keys <= set(parameters), f"{path}: {node._target_} does not take {sorted(keys - set(parameters))}"
        required = {
            name
            for name, parameter in parameters.items()
            if parameter.default is parameter.empty
            and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        }
        # What two parts share is passed where they are built: it is a part of the whole, or left open by a partial.
        missing = required - keys - {str(key) for key in cfg}
        assert node.get("_partial_") or not missing, f"{path}: {node._target_} also needs {sorted(missing)}"
        checked.append(path)
    return checked


def repeated(node: Any, path: str, read: set[str]) -> Iterator[str]:
    """Keys whose value is the default of the parameter that they are passed to, but for those that others read."""
    if isinstance(node, ListConfig):
        for index in range(len(node)):
            yield from repeated(node._get_node(index), f"{path}[{index}]", read)
    if not isinstance(node, DictConfig) or node._is_none() or node._is_interpolation():
        return
    defaults = options(node._target_) if "_target_" in node else {}
    for key in map(str, node):
        open_value = node._get_node(key)._is_interpolation() or node._get_node(key)._is_missing()
        if key in defaults and not open_value and f"{path}.{key}" not in read:
            value = OmegaConf.to_container(OmegaConf.create({"is": node[key]}))["is"]
            if spelt(value) == spelt(defaults[key]):
                yield f"{path}.{key}"
        yield from repeated(node._get_node(key), f"{path}.{key}", read)


def spelt(value: Any) -> Any:
    """A value as YAML has it; true is not 1."""
    return [spelt(each) for each in value] if isinstance(value, list | tuple) else (isinstance(value, bool), value)


@pytest.mark.parametrize("name", MEMBERS)
def test_a_default_stands_in_python_alone(name: str) -> None:
    read = set(
        re.findall(r"\$\{([\w.]+)\}", "".join(path.read_text(encoding="utf-8") for path in CONF.rglob("*.yaml")))
    )
    assert list(repeated(OmegaConf.load(CONF / f"{name}.yaml"), name.partition("/")[0], read)) == []


@pytest.mark.parametrize("name", PRIMARIES)
def test_entry_points_compose(name: str) -> None:
    cfg = composed(name)
    check_keys(cfg)
    assert cfg.task == name


@pytest.mark.parametrize("name", MEMBERS)
def test_every_member_composes_and_builds_what_exists(name: str) -> None:
    check_keys(with_member(name))


@pytest.mark.parametrize("name", [name for name in OVERLAYS if name.startswith("experiment/")])
def test_every_experiment_is_whole(name: str) -> None:
    cfg = with_member(name)
    assert cfg.name not in ("unnamed", None), "an experiment names its run folder"
    assert check_keys(cfg)
    OmegaConf.to_container(cfg, resolve=True)
    check_types(cfg)


@pytest.mark.parametrize(
    ("name", "group", "factor"),
    [("rates/world_sd/latexblend/train", "modifier", 5), ("method/llmdiff/train", "scalars", 10)],
)
def test_v_star_and_scalars_learn_faster_than_matrices(name: str, group: str, factor: float) -> None:
    cfg = OmegaConf.load(CONF / f"{name}.yaml")
    assert cfg.rates[group] == pytest.approx(factor * cfg.optimizer.lr)


@pytest.mark.parametrize(
    ("experiment", "method", "lr", "modifier"),
    [
        # On real models as in the reference code and the authors' examples, on the world as searched there.
        ("concept_sdxl", "latexblend", 2e-5, 2e-5),
        ("concept_sd15", "custom_diffusion", 2e-5, 2e-5),
        ("concept_sdxl", "dreambooth_lora", 1e-4, None),
        ("concept_sdxl", "mudi", 1e-4, None),
        ("concept_sd15", "mix_of_show", 1e-4, 1e-3),
        ("concept_sd15", "textual_inversion", 5e-4, None),
        ("concept_sd15", "cones2", 5e-6, None),
        ("concept_sd35", "latexblend", 4e-4, 5e-4),
        ("concept_dog", "latexblend", 1.4e-4, 7e-4),
        ("concept_dog", "custom_diffusion_joint", 1.4e-4, 7e-4),
        ("concept_dog", "dreambooth_lora", 3e-4, None),
        ("concept_dog", "mudi", 3e-4, None),
        ("concept_dog", "mix_of_show", 1e-3, 1e-3),
        ("concept_dog", "textual_inversion", 2e-2, None),
        ("concept_dog", "cones2", 1e-3, None),
        ("concept_sd3", "latexblend", 6e-3, 1.5e-3),
        ("concept_sd3", "dreambooth_lora", 3e-3, None),
    ],
)
def test_rates_are_those_of_the_method_on_the_model(
    experiment: str, method: str, lr: float, modifier: float | None
) -> None:
    chosen = f"+experiment={experiment}", f"method={method}/train"
    found = composed("train", *chosen).method
    assert (found.optimizer.lr, found.get("rates")) == (lr, None if modifier is None else {"modifier": modifier})
    typed = composed("train", *chosen, "method.optimizer.lr=0.5").method
    assert (typed.optimizer.lr, typed.get("rates")) == (0.5, found.get("rates"))


def leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of nested mappings, by its dotted key."""
    if not isinstance(node, Mapping):
        yield path, node
        return
    for key in node:
        yield from leaves(node[key], f"{path}.{key}".lstrip("."))


def at_key(cfg: DictConfig, key: str) -> Any:
    """What stands there, in Python's own types."""
    found = OmegaConf.select(cfg, key, default="absent")
    return OmegaConf.to_container(found) if OmegaConf.is_config(found) else found


@pytest.mark.parametrize("name", [name for name in OVERLAYS if name.startswith("sweep/")])
def test_every_point_of_a_sweep_reaches_what_it_builds_or_trains(name: str) -> None:
    parser = OverridesParser.create()
    with_member(name)
    params = HydraConfig.get().sweeper.params
    assert params and all(isinstance(values, str) for values in params.values()), "a YAML list is one value"
    points = {key: list(parser.parse_override(f"{key}={values}").sweep_iterator()) for key, values in params.items()}
    groups = {key: values for key, values in points.items() if (CONF / key).is_dir()}
    for key, values in groups.items():
        for value in values:
            check_keys(with_member(name, f"{key}={value}"))
    chosen = [f"{key}={values[-1]}" for key, values in groups.items()]
    for given, values in points.items():
        key = given.lstrip("+")
        assert len(values) > 1 and len({*map(str, values)}) == len(values), f"{key} has no two points that differ"
        for value in values if key not in groups else []:
            cfg, typed = with_member(name, *chosen, override(given, value)), override(key, value)
            if key.startswith("training."):
                training = as_overrides(OmegaConf.to_container(cfg.training))
                cfg = composed("train", f"+experiment={cfg.suite.experiment}", *map(addable, training))
            check_keys(cfg)
            check_types(cfg)
            for at, one in leaves(value, key.removeprefix("training.")):
                assert at_key(cfg, at) == one, typed


@pytest.mark.parametrize("name", OVERLAYS)
def test_package_directive_comes_first(name: str) -> None:
    """Below any other line Hydra ignores it silently."""
    first = next(line for line in (CONF / f"{name}.yaml").read_text(encoding="utf-8").splitlines() if line.strip())
    if name.split("/")[0] in ("experiment", "sweep"):
        assert first == "# @package _global_"


@pytest.mark.parametrize("name", [name for name in PRIMARIES if name not in ("doctor", "desk")])
def test_self_comes_first(name: str) -> None:
    """Last, it silently cancels experiments and sweeps; the doctor and the desk take neither."""
    assert OmegaConf.load(CONF / f"{name}.yaml").defaults[0] == "_self_"


@pytest.mark.parametrize("name", FILES)
def test_files_end_in_yaml_and_hold_no_machine_path(name: str) -> None:
    text = (CONF / f"{name}.yaml").read_text(encoding="utf-8")
    assert not re.search(r"(?<![\w.$}])/(work|root|home|tmp|mnt|data)/", text)


def test_no_file_with_another_ending() -> None:
    assert not [path for path in CONF.rglob("*") if path.is_file() and path.suffix != ".yaml"]


@pytest.mark.parametrize("method", [name.split("/")[1] for name in MEMBERS if re.match(r"method/\w+/train$", name)])
def test_every_method_can_be_searched_for_its_rate(method: str) -> None:
    experiment = "llmdiff" if method == "llmdiff" else "concept_dog"
    cfg = composed("train", f"+experiment={experiment}", f"method={method}/train", "hpo=rate")
    [(key, wanted)] = cfg.hpo.space.items()
    assert takes(cfg, key) and wanted.low <= OmegaConf.select(cfg, key) <= wanted.high
