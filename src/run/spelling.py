"""What people type, before Hydra sees it: short forms are made whole, old names replaced with a note of the new."""

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

CONF = Path(__file__).parents[2] / "conf"
ADDABLE = {"experiment=": "+", "bank.": "++", "references.": "++", "training.": "++", "suite.subjects.": "++"}
"""Keys that a user may add, which plain Hydra wants marked: an experiment is no part of the defaults list (`+`), the
names of banks are the user's own (`++`, so that the same name in an experiment is replaced), and so are the keys of a
training that an evaluation changes."""
METHODS = {"blending": "latexblend", "llmdiff_training": "llmdiff"}
"""Old names of methods."""
TRAINING = {
    "learning_rate": "optimizer.lr",
    "weight_decay": "optimizer.weight_decay",
    "modifier_learning_rate": "rates.modifier",
    "scalar_learning_rate": "rates.scalars",
    "text_learning_rate": "rates.text_encoder",
    **{name: f"learner.subject.{name}" for name in ("class_noun", "concept", "references")},
    **{name: f"learner.objective.{name}" for name in ("base_flow", "templates", "prior_loss_weight", "faithful")},
    **{
        name: f"learner.{name}"
        for name in (
            *("backbone", "cache_dir", "export_path", "initializer", "rank", "snr_gamma", "sampling", "seed"),
            *("encoder", "options", "caption_dropout", "gradient_checkpointing", "encode_ahead"),
        )
    },
}
PRETRAINING = {
    **{name: f"learner.size.{name}" for name in ("depth", "width", "base_channels", "layers_per_block")},
    **{name: f"learner.teaching.{name}" for name in ("momentum", "final_momentum")},
    "min_crop": "learner.views.min_crop",
    "view_size": "learner.views.size",
    **{
        name: f"learner.{name}"
        for name in (
            *("export_dir", "init_from", "code_path", "block_out_channels", "text_width", "text_layers"),
            *("teacher_steps", "teacher_weight", "commitment_weight", "early_share", "phrases_alone", "flip_strength"),
            *("contrast_weight", "full_caption_share", "decoder_noise", "reweight_by_scale", "model_args"),
        )
    },
}
"""What the pretrainings of the world add."""
DRAWING = {
    name: f"sampling.{name}" for name in ("num_inference_steps", "guidance_scale", "negative_prompt", "resolution")
}
RESPELLED = {"train": TRAINING | PRETRAINING, "draw": DRAWING}
"""Old keys below ``method`` to today's: of trainings, and of what draws images."""


def respelled(arguments: Sequence[str], script: str) -> list[str]:
    """Arguments of an entry point as Hydra understands them.

    A method's name stands for its file: ``method=latexblend`` is ``latexblend/train`` in train.py and
    ``latexblend/draw`` elsewhere.

    Args:
        arguments: As typed.
        script: The entry point's file, such as ``train.py``.
    """
    role = "train" if Path(script).stem == "train" else "draw"
    return [_with_plus(_with_role(_with_new_keys(argument, role), role)) for argument in arguments]


def _with_plus(argument: str) -> str:
    return next((plus + argument for start, plus in ADDABLE.items() if argument.startswith(start)), argument)


def _with_role(argument: str, role: str) -> str:
    """``method=A,B`` by the files' names; a name that has a file of its own, or its role already, stays."""
    if not argument.startswith("method="):
        return argument
    typed = argument.removeprefix("method=").split(",")
    names = [METHODS.get(name, name) for name in typed]
    if names != typed:
        _note(argument, f"method={','.join(names)}")
    return f"method={','.join(_file(name, role) for name in names)}"


def _file(name: str, role: str) -> str:
    whole = "/" in name or name in ("", "null") or (CONF / "method" / f"{name}.yaml").exists()
    return name if whole else f"{name}/{role}"


def _with_new_keys(argument: str, role: str) -> str:
    """An old key by its new name; what an evaluation trains on the way is spelt as in train.py."""
    found = re.match(r"([+~]*)(training\.)?method\.([\w.]+)(.*)", argument, re.DOTALL)
    if found is None:
        return argument
    plus, training, key, rest = found.groups("")
    new = _new_key(key, RESPELLED["train" if training else role])
    if new == key:
        return argument
    _note(f"{training}method.{key}", f"{training}method.{new}")
    return f"{plus}{training}method.{new}{rest}"


def _new_key(key: str, table: Mapping[str, str]) -> str:
    first, dot, inner = key.partition(".")
    return f"{table.get(first, first)}{dot}{inner}"


def _note(old: str, new: str) -> None:
    print(f"note: {old} is now {new}", file=sys.stderr)
