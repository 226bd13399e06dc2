"""Text is UTF-8 wherever it is read or written, whatever the locale: every call says so."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(
    path
    for place in ("src", "tests", "benchmarks", "experiments", "world", "docs")
    for path in (ROOT / place).rglob("*.py")
) + sorted(ROOT.glob("*.py"))
PATHLIB = ("read_text", "write_text")
PROCESSES = ("run", "Popen", "check_output", "check_call", "call")
BINARY_BY_DEFAULT = ("NamedTemporaryFile", "TemporaryFile", "SpooledTemporaryFile")


def calls_without_encoding(source: str) -> list[int]:
    """Lines of calls that read or write text in the encoding of the locale."""
    return [call.lineno for call in _calls(ast.parse(source)) if _is_text(call) and not _says_encoding(call)]


def _calls(tree: ast.AST) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def _name(call: ast.Call) -> str:
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


def _says_encoding(call: ast.Call) -> bool:
    given = {word.arg for word in call.keywords}
    # Of ``read_text`` and ``write_text`` it may also be the first and the second argument; ``**`` may hold it.
    return bool(given & {"encoding", None}) or (_name(call) in PATHLIB and len(call.args) > PATHLIB.index(_name(call)))


def _is_text(call: ast.Call) -> bool:
    name, is_method = _name(call), isinstance(call.func, ast.Attribute)
    words = {word.arg: getattr(word.value, "value", ...) for word in call.keywords}
    if name in PATHLIB:
        return is_method
    if name == "TextIOWrapper":
        return True
    if name in PROCESSES:
        return words.get("text") is True or words.get("universal_newlines") is True
    if name in ("open", "fdopen", *BINARY_BY_DEFAULT):
        of_path = is_method and name == "open"
        place = 0 if of_path or name in BINARY_BY_DEFAULT else 1
        given = [getattr(argument, "value", ...) for argument in call.args][place : place + 1]
        mode = words.get("mode", given[0] if given else "b" if name in BINARY_BY_DEFAULT else "r")
        # ``Image.open(path)`` and the like have something else where a path has its mode.
        return isinstance(mode, str) and "b" not in mode and not mode.startswith("r:")
    return False


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_call_says_the_encoding(path: Path) -> None:
    lines = calls_without_encoding(path.read_text(encoding="utf-8"))
    assert not lines, f'{path}: say encoding="utf-8" in lines {lines}'


@pytest.mark.parametrize(
    ("source", "is_fine"),
    [
        ("open(path)", False),
        ("open(path, 'w')", False),
        ("open(path, mode='a')", False),
        ("open(path, 'rb')", True),
        ("open(path, encoding='utf-8')", True),
        ("path.open()", False),
        ("path.open('w', newline='')", False),
        ("path.open('rb')", True),
        ("Image.open(path)", True),
        ("source.open(index)", True),
        ("os.fdopen(number, 'w')", False),
        ("path.read_text()", False),
        ("path.read_text('utf-8')", True),
        ("path.write_text(text)", False),
        ("path.write_text(text, encoding='utf-8')", True),
        ("write_text(path, text)", True),
        ("subprocess.run(command, text=True)", False),
        ("subprocess.run(command, text=True, encoding='utf-8')", True),
        ("subprocess.run(command)", True),
        ("tempfile.NamedTemporaryFile()", True),
        ("tempfile.NamedTemporaryFile('w')", False),
        ("io.TextIOWrapper(stream)", False),
    ],
)
def test_the_rule_sees_what_it_should(source: str, is_fine: bool) -> None:
    assert (not calls_without_encoding(source)) is is_fine
