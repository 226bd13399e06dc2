"""Files of LaTexBlend's published code, its checkpoint ``delta.bin`` and its bank, are made banks of ours.

A checkpoint is ``{"unet": {"<layer>.to_k.weight": W', ...}, "modifier_token": {"<new1>": [V* of each encoder]}}``, and
a bank ``{"<layer>.processor": {"k": (S, D), "v": (S, D)}, ...}``. Neither says the noun or the model.
"""

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from src.data.prompts import FIXED_TEMPLATE, concept_span, tokenize
from src.data.schema import RefusedFileError
from src.modules.backbones.base import Backbone
from src.modules.latexblend.bank import ConceptBank
from src.modules.latexblend.token_tables import modifier_embedded

EXPECTED = "a checkpoint has unet and modifier_token, a bank has k and v of each layer's processor"


def read_reference(path: str | Path) -> dict[str, Any]:
    """Read a file of the published code; nothing in it but tensors, names and lists is read.

    Returns:
        Its mapping, of tensors on the CPU.

    Raises:
        RefusedFileError: If there is no such file, or it holds something else.
    """
    if not Path(path).is_file():
        raise RefusedFileError(f"there is no file {path}; give delta.bin or a bank of LaTexBlend's published code")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise RefusedFileError(
            f"{path} is damaged, or holds more than tensors, which is not read: {EXPECTED}"
        ) from error
    if not isinstance(found, dict) or not found or not all(isinstance(name, str) for name in found):
        raise RefusedFileError(f"{path} is no file of LaTexBlend's published code: {EXPECTED}")
    return found


@torch.no_grad()
def bank_of_reference(path: str | Path, class_noun: str, backbone: Backbone) -> ConceptBank:
    """Make a bank of ours from a file of the published code.

    Args:
        path: ``delta.bin``, whose bank is extracted from "photo of V* noun" as there, or a bank.
        class_noun: The noun that it was learnt with, such as ``dog``.
        backbone: The model that it was learnt with.

    Raises:
        RefusedFileError: If the file is neither, or its layers, widths or tokens are not those of model and noun.
    """
    found = read_reference(path)
    prompt, span = concept_span(backbone.tokenizers[0], FIXED_TEMPLATE, class_noun, backbone.as_read)
    if "unet" in found:
        token, vectors = _modifier(path, found.get("modifier_token"), backbone)
        ids = [tokenize(tokenizer, [backbone.as_read(prompt)]) for tokenizer in backbone.tokenizers]
        starts = [torch.tensor([span.start - each.shape[1]]) for each in ids]
        with modifier_embedded(backbone.text_encoders, vectors, starts):
            text = backbone.encode_ids(ids)
        states = backbone.read_text(text.prompt_embeds)[0, span].float()  # (S, C)
        rows = {
            name: F.linear(states, weight.to(states)).cpu() for name, weight in _weights(path, found["unet"], backbone)
        }
    else:
        token, rows = "<new1>", _rows(path, found, backbone, span.stop - span.start, class_noun)
    metadata = {
        "class_noun": class_noun,
        "modifier_token": token,
        "backbone": backbone.name,
        "backbone_hash": backbone.fingerprint,
        "backbone_content": backbone.content_hash,
        "extraction_template": FIXED_TEMPLATE,
        "training": f"LaTexBlend's published code, {Path(path).name}",
    }
    return ConceptBank(rows, metadata)


def _modifier(path: str | Path, tokens: Any, backbone: Backbone) -> tuple[str, list[Tensor]]:
    """Return the name of V* and its vector ``(D,)`` in each text encoder."""
    if not isinstance(tokens, Mapping) or len(tokens) != 1:
        held = ", ".join(map(str, tokens)) if isinstance(tokens, Mapping) else "none"
        raise RefusedFileError(
            f"{path} holds the words {held or 'none'}, but a bank is of one; give a file of one concept"
        )
    token, vectors = next(iter(tokens.items()))
    vectors = [vectors] if isinstance(vectors, Tensor) else list(vectors)
    widths = [encoder.get_input_embeddings().weight.shape[1:] for encoder in backbone.text_encoders]  # type: ignore[operator]
    if [getattr(vector, "shape", None) for vector in vectors] != widths:
        raise RefusedFileError(
            f"{path} has V* of {len(vectors)} text encoders, of other number or width than {backbone.name} reads; give "
            "the backbone that it was learnt with"
        )
    return token, [vector.float().to(backbone.device) for vector in vectors]


def _weights(path: str | Path, unet: Any, backbone: Backbone) -> list[tuple[str, Tensor]]:
    """Return W' ``(D, C)`` of each projection by its name here."""
    layers = backbone.text_layers()
    given = dict(unet) if isinstance(unet, Mapping) else {}
    named = {f"{name[2:]}.to_{name[0]}.weight": name for name in layers}
    _same(
        path,
        {name: getattr(one, "shape", None) for name, one in given.items()},
        backbone,
        {there: layers[name].weight.shape for there, name in named.items()},
    )
    return [(name, given[there]) for there, name in named.items()]


def _rows(
    path: str | Path, found: Mapping[str, Any], backbone: Backbone, number: int, class_noun: str
) -> dict[str, Tensor]:
    """Return the rows ``(S, D)`` of a bank by their names here, without the storage that they are views of."""
    given = {
        f"{kind}.{name.removesuffix('.processor')}": rows
        for name, parts in found.items()
        if isinstance(parts, Mapping)
        for kind, rows in parts.items()
        if isinstance(rows, Tensor) and rows.ndim == 2
    }
    if not given or len(given) != 2 * len(found):
        raise RefusedFileError(f"{path} is no file of LaTexBlend's published code: {EXPECTED}")
    held = {rows.shape[0] for rows in given.values()}
    if held != {number}:
        raise RefusedFileError(
            f"{path} holds {' or '.join(map(str, sorted(held)))} rows a layer, but V* {class_noun} has {number} "
            "tokens; give the class_noun that it was learnt with"
        )
    layers = backbone.text_layers()
    wanted = {name: torch.Size((number, linear.out_features)) for name, linear in layers.items()}
    _same(path, {name: rows.shape for name, rows in given.items()}, backbone, wanted)
    return {name: given[name].float().clone() for name in layers}


def _same(path: str | Path, given: Mapping[str, Any], backbone: Backbone, wanted: Mapping[str, torch.Size]) -> None:
    """Refuse a file whose tensors are not those of the backbone."""
    wrong = sorted(name for name in given.keys() | wanted.keys() if given.get(name) != wanted.get(name))
    if wrong:
        shapes = [
            tuple(one[wrong[0]]) if one.get(wrong[0]) is not None else "no such tensor" for one in (given, wanted)
        ]
        raise RefusedFileError(
            f"{path} and {backbone.name} differ in {len(wrong)} tensors, first {wrong[0]}: {shapes[0]} there, "
            f"{shapes[1]} here; give the backbone that it was learnt with"
        )
