"""Every command that a page or a comment tells to type is understood, down to what each part is built with."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict

from src.run.cli import respelled
from src.run.suites import AdapterSuite
from src.run.targets import build
from src.run.types import check_types

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
START = re.compile(r"python (train|generate|eval|doctor)\.py\b")
PAGES = [
    path
    for folder in (ROOT / "experiments", ROOT / "src", ROOT / "world")
    for path in sorted(folder.rglob("*"))
    if path.suffix in (".md", ".sh") and path.name != "HISTORY.md"
]
pytestmark = pytest.mark.usefixtures("configurations")


def in_page(text: str) -> Iterator[str]:
    """Commands of the blocks of a page, and those that stand between two backticks."""
    blocks = re.findall(r"^```bash\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
        if found := START.search(line):
            yield line[found.start() :]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    for span in re.findall(r"`([^`]+)`", prose):
        if START.match(span):
            yield " ".join(span.split())


def in_comment(text: str) -> Iterator[str]:
    """The command at the top of a configuration, and with each line below it that names a variant."""
    top = "\n".join(line.removeprefix("#") for line in text.splitlines() if line.startswith("#"))
    command = ""
    for line in top.splitlines():
        if found := START.search(line):
            command = line[found.start() :]
            yield command
        elif command and (variant := re.match(r" {3,}[^:=]+: +(\S+=.*)", line)):
            yield f"{command} {variant[1]}"


def written() -> list[str]:
    found = [
        *in_page((ROOT / "README.md").read_text(encoding="utf-8")),
        *in_page((ROOT / "RESULTS.md").read_text(encoding="utf-8")),
    ]
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        found += in_page(text if page.suffix == ".md" else f"```bash\n{text}```")
    for path in sorted((CONF / "experiment").rglob("*.yaml")):
        found += in_comment(path.read_text(encoding="utf-8"))
    return sorted({re.split(r"\s+#", command)[0].rstrip() for command in found})


COMMANDS = written()


def arguments_of(command: str) -> tuple[str, list[str]]:
    """Entry point and arguments; what is in brackets may be given, and every variable is some file."""
    plain = re.sub(r"\[(\w[\w.]*=[^\]]*)\]", r"\1", command)
    _, script, *arguments = shlex.split(plain.replace('"$@"', ""))
    values = [re.sub(r"\$\w+", "some/file.safetensors", argument) for argument in arguments]
    # A picture brings the arguments that drew it.
    left_out = ("-m", "--help", "...", "from=IMAGE.png")
    return script, [value for value in values if value not in left_out and not value.endswith("=...")]


def first_of(override: str) -> str:
    """The first point of a swept argument."""
    parsed = OverridesParser.create().parse_override(override)
    return (
        f"{parsed.get_key_element()}={next(parsed.sweep_string_iterator())}" if parsed.is_sweep_override() else override
    )


def understood(name: str, arguments: list[str]) -> DictConfig:
    """The configuration of a command, or of the first point of a sweep."""
    overrides = [first_of(argument) for argument in arguments]
    swept = compose(name, overrides=overrides, return_hydra_config=True).hydra.sweeper.get("params") or {}
    points = [first_of(f"{key}={value}") for key, value in swept.items()]
    cfg = compose(name, overrides=[*points, *overrides, "paths.run_dir=."], return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    plain = cfg.copy()
    OmegaConf.set_struct(plain, False)
    with open_dict(plain):
        del plain["hydra"]
    return plain


def test_there_are_as_many_commands_as_pages_have() -> None:
    assert len(COMMANDS) > 60
    assert "python train.py +experiment=concept_dog data.instance_dir=FOLDER class_noun=dog concept=NAME" in COMMANDS
    assert sum("data=captioned_" in command for command in COMMANDS) >= 3


@pytest.mark.parametrize("command", COMMANDS)
def test_a_written_command_is_understood(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    script, arguments = arguments_of(command)
    if arguments == ["--help"]:
        return
    cfg = understood(Path(script).stem, respelled(arguments, script))
    check_types(cfg)
    assert OmegaConf.missing_keys(cfg) == set(), "the command leaves out what has no default"
    if "method" in cfg:
        assert cfg.method is not None, "there is nothing to train or draw"
    suite = build(cfg.get("suite"))
    if isinstance(suite, AdapterSuite):
        assert suite.config.method
    elif suite is not None:
        assert suite.sources()


def test_modules_that_are_to_be_run_are_there() -> None:
    kinds = (".py", ".md", ".yaml", ".sh", ".toml")
    files = [path for folder in ("src", "conf", "docs", "experiments", "benchmarks", "tests", "world", ".ci")
             for path in (ROOT / folder).rglob("*") if path.suffix in kinds]  # fmt: skip
    texts = [path.read_text(encoding="utf-8") for path in [*files, *ROOT.glob("*.md"), ROOT / ".ci" / "run"]]
    named = {
        name for text in texts for name in re.findall(r"python -m ((?:src|tests|experiments|benchmarks)[\w.]*)", text)
    }
    assert len(named) > 5
    for name in named:
        place = ROOT / name.rstrip(".").replace(".", "/")
        assert place.with_suffix(".py").is_file() or (place / "__main__.py").is_file(), name
