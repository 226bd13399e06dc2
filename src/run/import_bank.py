"""A bank from a file of LaTexBlend's published code: ``python -m src.run.import_bank delta.bin rex.safetensors ...``.

After the two files come ``class_noun=dog``, the noun that it was learnt with, and the model, such as ``backbone=sdxl``.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from src.data.banks import CONCEPT_BANK
from src.data.commands import command
from src.data.mentions import NAME
from src.modules.latexblend.reference import bank_of_reference, read_reference
from src.run.errors import explain
from src.run.start import quieten_libraries
from src.run.targets import CONF, build
from src.run.types import check_types

USAGE = "python -m src.run.import_bank delta.bin rex.safetensors class_noun=dog backbone=sdxl"


def imported(arguments: Sequence[str]) -> str:
    """Write the bank that the arguments ask for.

    Args:
        arguments: The file, the bank's file, ``class_noun=NOUN`` and overrides of the backbone.

    Returns:
        The command that draws with it.

    Raises:
        ValueError: If an argument is missing, the bank's file is there already, or what was given does not fit.
    """
    files = [word for word in arguments if "=" not in word]
    nouns = [word.partition("=")[2] for word in arguments if word.startswith("class_noun=")]
    if len(files) != 2 or len(nouns) != 1 or any(word.startswith("-") for word in arguments):
        raise ValueError(f"give two files and the noun: {USAGE}")
    source, target = files
    if Path(target).exists():
        raise ValueError(f"{target} is there already; give another file")
    CONCEPT_BANK.check(target, {"class_noun": nouns[0], "backbone_hash": "0"})
    # A file that is none of these is refused before the model is read.
    read_reference(source)
    overrides = [word for word in arguments if "=" in word and not word.startswith("class_noun=")]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        chosen = compose("generate", overrides).backbone
    cfg = OmegaConf.create({"backbone": OmegaConf.to_container(chosen, resolve=True)})
    check_types(cfg)
    bank_of_reference(source, nouns[0], build(cfg.backbone)).save(target)
    name = Path(target).stem if NAME.fullmatch(Path(target).stem) else "rex"
    drawing = {"prompt": f"a <{name}> on the beach", f"bank.{name}": target}
    # There V* has the key of the noun wherever it is drawn.
    as_there = {"method.keep_context": False, "method.rectification.bind": True}
    return " ".join([command("generate.py", {**drawing, **as_there}), *overrides])


def main(arguments: Sequence[str]) -> int:
    """Import one file; return the exit code."""
    quieten_libraries()
    try:
        following = imported(arguments)
    except Exception as error:
        sentence = explain(error)
        if sentence is None:
            raise
        print(f"error: {sentence}", file=sys.stderr)
        return 1
    print(f"next: {following}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
