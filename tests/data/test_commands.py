"""Printed commands come back from the shell and from Hydra as they were meant."""

import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from src.data.commands import command

VALUES = [
    *("/tmp/bank.safetensors", "a <rex> on the beach", "it's", 'a "b"', "$HOME", "${b}", "\\${b}", "a\\\\${b}", "x\\"),
    *(
        "\\'",
        "a,b",
        "(x)",
        "[y]",
        "{z}",
        "\u4e2d\u6587",
        "~/x",
        "null",
        "True",
        "1",
        "1.5",
        "nan",
        "-x",
        "",
        "#",
        "a=b",
    ),
    *("x\ny", "!", "`a`", "C:\\dir\\", " ", "%", "x'\\", "'${a}'", "/tmp/Anna's photos, 2024 (best) ${b} \\"),
    *(1, 1.5, 1e-5, True, None, ["a b", "c'd", 1]),
]


@pytest.mark.parametrize("value", VALUES)
def test_a_value_comes_back_from_shell_and_configuration(tmp_path: Path, value: Any) -> None:
    (tmp_path / "config.yaml").write_text("a: null\nreference: ${a}\n", encoding="utf-8")
    printed = command("generate.py", {"a": value})
    arguments = shlex.split(printed)
    assert arguments[:2] == ["python", "generate.py"]
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        cfg = compose("config", arguments[2:])
    assert cfg.a == value and cfg.reference == value
    assert type(cfg.a) is type(value) or isinstance(value, list)


def test_bash_reads_what_is_printed() -> None:
    settings = {f"key{at}": value for at, value in enumerate(VALUES)}
    printed = command("generate.py", settings).replace("python generate.py", "printf '%s\\0'")
    read = subprocess.run(["bash", "-c", printed], capture_output=True, check=True).stdout.decode("utf-8")
    assert read.split("\0")[:-1] == shlex.split(command("generate.py", settings))[2:]


def test_what_is_plain_is_not_quoted_and_a_prompt_stays_readable() -> None:
    printed = command("generate.py", {"prompt": "a <rex>", "bank.rex": "outputs/a_b-1.safetensors", "seed": 0})
    assert printed == """python generate.py "prompt='a <rex>'" bank.rex=outputs/a_b-1.safetensors seed=0"""
