"""What the package says about itself: dependencies that are used and declared, licence, version, citation, types."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OURS = {"src", "tests", "train", "generate", "eval", "doctor", "desk", "experiments", "benchmarks"}
IMPLIED = {"nvidia-ml-py", "pyyaml", "fsspec", "huggingface-hub", "tqdm", "webdataset", "lightning-utilities"}
"""Imported, and brought by a declared package that cannot do without: OmegaConf, torch, Lightning, transformers."""


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[<>=!\[ ]", name)[0]).lower()


def imported(path: Path) -> Iterator[tuple[str, bool]]:
    """Top-level packages that a file imports, and whether they are needed as soon as the file is."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        yield from ((name.partition(".")[0], node in tree.body) for name in names)


def distributions(only_at_once: bool = False) -> dict[str, Path]:
    """Distribution of everything that the program imports, and one file that does."""
    known, found = packages_distributions(), {}
    for path in [*(ROOT / "src").rglob("*.py"), *ROOT.glob("*.py")]:
        for name, at_once in imported(path):
            if name not in sys.stdlib_module_names and name not in OURS and (at_once or not only_at_once):
                found |= {normalised(each): path for each in known.get(name, [name])[:1]}
    return found


def test_what_the_program_imports_is_declared_and_what_is_declared_is_imported() -> None:
    core = {normalised(each) for each in PROJECT["dependencies"]}
    extras = {normalised(each) for name, extra in PROJECT["optional-dependencies"].items() for each in extra}
    used = distributions()
    assert not {name: str(path) for name, path in used.items() if name not in core | extras | IMPLIED}
    # Accelerate acts behind diffusers: parts that wait in main memory, and weights that are read once.
    assert core - used.keys() == {"accelerate"}


def test_an_extra_is_imported_where_it_is_used() -> None:
    """Four files exist for one such package and say so at once; all others import theirs when they need it."""
    core = {normalised(each) for each in PROJECT["dependencies"]} | IMPLIED
    late = {name: path.name for name, path in distributions(only_at_once=True).items() if name not in core}
    assert late == {
        "lightly": "self_distillation.py",
        "optuna": "search.py",
        "starlette": "app.py",
        "wandb-workspaces": "panels.py",
    }


def test_licence_version_and_citation_agree() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["license"] == PROJECT["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8").splitlines()[0]
    assert citation["version"] == PROJECT["version"]
    urls = {reference["url"] for reference in citation["references"]}
    assert urls == set(
        re.findall(r"\((https://arxiv\.org/abs/\S+?)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    )
    assert f"## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert (ROOT / "src" / "py.typed").exists()


def test_no_two_files_of_tests_have_one_name(root: Path) -> None:
    """Pytest imports them by it, and would collect none of them."""
    names = [path.name for path in (root / "tests").rglob("test_*.py")]
    assert sorted(set(names)) == sorted(names)
