"""Pages stay short, and their links lead somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [path for path in ROOT.rglob("*.md") if not {"outputs", ".venv", "venv"} & set(path.relative_to(ROOT).parts)]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_page_is_short_and_its_links_lead_somewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if path == ROOT / "README.md":
        assert text.count("\n") <= 110
    if path.name == "README.md" and path.parent.parent.name == "experiments":
        assert text.count("\n") <= 45
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        assert link.startswith("http") or (path.parent / link).exists(), link


def test_files_that_pages_name_are_there() -> None:
    """A method's page says where each equation stands."""
    for page in (ROOT / "src").rglob("README.md"):
        for name in re.findall(r"`(\w+\.py)`", page.read_text(encoding="utf-8")):
            assert [*(ROOT / "src").rglob(name), *ROOT.glob(name), *(ROOT / "tests").rglob(name)], f"{page}: {name}"


def test_extras_are_installed_from_this_folder() -> None:
    """In the package index, Atelier's name belongs to somebody else's program."""
    for folder in ("src", "conf", "docs", "experiments", "world", "benchmarks"):
        for path in (path for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".yaml", ".md", ".toml")):
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"atelier\[|install ['\"]?atelier\b", text), path
            assert not re.search(r"pip install (?!-e ['\"]\.\[)\S*\[", text), path
