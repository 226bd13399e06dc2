"""What is checked of a checkpoint, with the objects that train.py and generate.py build: each says what it saw."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open

from src.data.finite import check_finite
from src.data.prompts import concept_positions, tokenize
from src.data.request import Request
from src.modules.backbones.base import Backbone
from src.modules.latexblend.bank import transformed_projections
from src.modules.latexblend.generator import BlendedText, ConceptGenerator, blended
from src.modules.latexblend.joint import joint_blended

SUFFIXES = (".safetensors", ".bin", ".ckpt", ".pt", ".pth")
NAME, NOUN = "subject", "dog"
NOUNS = {NAME: NOUN, "van": "pickup truck"}
LOUD = 100.0
"""Strength at which what one step of training left is seen in a picture of 8 bits."""
AWKWARD = {
    f"a <{NAME}>": 1,
    f"<{NAME}>": 1,
    f"A PHOTO OF THE <{NAME}>!": 1,
    f"a <{NAME}> and a <{NAME}> on the grass": 2,
    f"a <van> behind my <{NAME}>": 2,
    f'"a <{NAME}>"; (the <van>), at night...': 2,
    f"the big, red <{NAME}>'s ball": 1,
    f"caf\u00e9 \u72ac na\u00efve \u2014 a <{NAME}> \U0001f600": 1,
}
"""Prompts that are hard to read, and how often they mention a concept; two long ones are made to measure."""


def files(place: Path) -> str:
    """Open every file of weights, of a folder or a single one, and say which formats there are.

    Raises:
        ValueError: If one is no safetensors file, without one beside it, or is cut short, or there is none.
    """
    found = [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.suffix in SUFFIXES)
    safe = [path for path in found if path.suffix == SUFFIXES[0]]
    folders = {path.parent for path in safe}
    if other := [path for path in found if path.suffix != SUFFIXES[0] and path.parent not in folders]:
        raise ValueError(f"{_named(other[0], place)} is no safetensors file, and none lies beside it")
    if not safe:
        raise ValueError(f"{place.name} holds no weights")
    told = []
    for path in safe:
        try:
            with safe_open(path, "pt") as file:
                names = list(file.keys())
                kinds = sorted({file.get_slice(name).get_dtype() for name in names})
        except Exception as error:
            raise ValueError(f"{_named(path, place)} cannot be read: {error}") from error
        size = path.stat().st_size / 1e6
        told.append(f"{_named(path, place)} ({len(names)} tensors, {', '.join(kinds)}, {size:.1f} MB)")
    return "; ".join(told)


def _named(path: Path, place: Path) -> str:
    return path.name if path == place else path.relative_to(place).as_posix()


def model(generator: ConceptGenerator) -> str:
    """Look at every weight, and say what the model is.

    Raises:
        ValueError: If a weight is not finite.
    """
    backbone = generator.backbone
    parts = {name: part for name, part in backbone.pipeline.components.items() if isinstance(part, torch.nn.Module)}
    for name, part in parts.items():
        for weight, tensor in part.state_dict().items():
            check_finite(tensor, f"the weights {name}.{weight}", "the file is damaged; copy it anew")
    number = sum(weight.numel() for part in parts.values() for weight in part.parameters())
    kind, schedule = (
        type(backbone.pipeline).__name__,
        backbone.noise_scheduler.config.get("prediction_type", "velocity"),
    )
    told = f"{kind}, {number / 1e6:,.1f} million parameters, {str(backbone.dtype).removeprefix('torch.')}"
    return f"{told}, predicts {schedule}, {backbone.resolution} pixels, fingerprint {backbone.fingerprint}"


@torch.no_grad()
def as_stock(generator: ConceptGenerator) -> str:
    """Draw a prompt without concepts, and with the stock pipeline alone: both pictures must be equal.

    Raises:
        ValueError: If they are not.
    """
    backbone, settings, prompt = generator.backbone, generator.sampling, f"a photo of a {NOUN}"
    [ours] = generator.sample([Request(prompt, 0)])
    theirs = backbone.pipeline(
        [prompt],
        **backbone.negatives([settings["negative_prompt"]]),
        num_inference_steps=settings["num_inference_steps"],
        **backbone.guidance(settings["guidance_scale"]),
        height=settings["resolution"],
        width=settings["resolution"],
        generator=[torch.Generator().manual_seed(0)],
        **backbone.call,
    ).images[0]
    return _equal(ours, theirs)


@torch.no_grad()
def as_plain(generator: ConceptGenerator) -> str:
    """Draw a prompt with the concept, keys and values computed once, and computed in every step: both must be equal.

    Where image and text attend together, nothing is computed once: there, a concept of strength 0 must change nothing.

    Raises:
        ValueError: If they are not, or the concept changes nothing.
    """
    backbone, placed = generator.backbone, generator.prepare(Request(f"a <{NAME}> next to a <{NAME}>", 0))
    placements, keep = [placed.concepts], generator.keep_context

    def drawn() -> Image.Image:
        return backbone.draw([placed.plain], [placed.seed], generator.sampling)[0]

    without = drawn()
    if backbone.joint:
        with joint_blended(backbone.denoiser, [[one._replace(strength=0.0) for one in placed.concepts]]):
            told = _equal(drawn(), without)
        with joint_blended(backbone.denoiser, [[one._replace(strength=LOUD) for one in placed.concepts]]):
            concept = drawn()
    else:
        with blended(backbone.denoiser, placements, keep_context=keep):
            concept = drawn()
        with transformed_projections(backbone.denoiser, BlendedText(placements, keep_context=keep)):
            told = _equal(concept, drawn())
    if np.array_equal(np.asarray(concept), np.asarray(without)):
        raise ValueError("the picture is the same without the concept, so the concept does not act")
    return told


def _equal(first: Image.Image, second: Image.Image) -> str:
    apart = np.abs(np.asarray(first, dtype=np.int16) - np.asarray(second, dtype=np.int16))
    if apart.any():
        raise ValueError(f"the pictures differ in {(apart > 0).mean():.1%} of their values, by {apart.max()} at most")
    return f"equal in all {apart.size:,} values"


def places(backbone: Backbone) -> str:
    """Find concepts in awkward prompts, and read the tokens there back: they must say article and noun.

    Raises:
        ValueError: With the first prompt in which they do not, or if one that is too long is taken.
    """
    tokenizer = backbone.tokenizers[0]
    long = _filled(backbone)
    for prompt, number in {**AWKWARD, long: 1}.items():
        marked, found = concept_positions(tokenizer, prompt, NOUNS, backbone.as_read)
        ids = tokenize(tokenizer, [backbone.as_read(marked.plain)])[0].tolist()
        if len(found) != number:
            raise ValueError(f"{prompt!r} mentions {number} concepts, but {len(found)} were found")
        for name, positions in found:
            read = "".join(tokenizer.decode([ids[at] for at in positions[1:]]).lower().split())
            if read != NOUNS[name].replace(" ", ""):
                raise ValueError(f"in {prompt!r} the tokens of <{name}> say {read!r}, not {NOUNS[name]!r}")
            article = tokenizer.decode([ids[positions[0]]]).strip().lower().removeprefix("##")
            # A small tokenizer cuts words into pieces, BERT's with ## before; V* takes the place of the last.
            if not article or not any(word.endswith(article) for word in ("a", "the", "my")):
                raise ValueError(f"in {prompt!r} the place before <{name}> says {article!r}, which is no article")
    try:
        tokenize(tokenizer, [f"very {concept_positions(tokenizer, long, NOUNS, backbone.as_read)[0].plain}"])
    except ValueError:
        return f"{len(AWKWARD) + 2} awkward prompts are read as they should be"
    raise ValueError("a prompt that is too long was cut in silence")


def _filled(backbone: Backbone) -> str:
    """A prompt that the text encoder has just room for."""
    tokenizer, prompt = backbone.tokenizers[0], f"a <{NAME}>"
    while True:
        longer = f"very {prompt}"
        if len(tokenizer(longer.replace(f"<{NAME}>", NOUN), verbose=False).input_ids) > tokenizer.model_max_length:
            return prompt
        prompt = longer


def picture(generator: ConceptGenerator) -> str:
    """Draw the concept once, as generate.py does.

    Raises:
        ValueError: If the picture is not finite, or all of one colour.
    """
    [image] = generator.sample([Request(f"a photo of a <{NAME}>", 0)])
    values = np.asarray(image)
    if values.min() == values.max():
        raise ValueError(f"it is all of one colour, {values.min()} of 255")
    steps = generator.sampling["num_inference_steps"]
    return f"{image.width} x {image.height}, {steps} steps, values from {values.min()} to {values.max()}"
