"""The file of an LLMDiff adapter: what its metadata and its weights must be."""

from typing import Annotated

from src.data.first_looks import FirstLook
from src.data.schema import HASH, WIDEST, FileKind, Metadata, Shapes, number, of_dataclass, one_of, parsed, shown
from src.modules.backbones.tensors import DTYPES
from src.modules.llmdiff.options import AdapterOptions, EncodingOptions

PARTS = ("aggregation", "phi", "phi_bias", "bottleneck", "layers", "pooled")
"""First words of the names of an adapter's weights."""
MOST_TERMS = 1024
"""Most states of a token; no language model has a quarter of as many blocks."""


def _shapes(metadata: Metadata, shapes: Shapes) -> str | None:
    """What is wrong with the weights, as far as the file alone tells."""
    options = parsed(AdapterOptions, metadata["adapter"])
    width, terms = int(metadata["llm_width"]), int(metadata["num_terms"])
    strange = [name for name in shapes if name.partition(".")[0] not in PARTS]
    if strange:
        return f"it holds {strange[0][:80]!r}; its weights are named {', '.join(PARTS)}"
    text_width = (shapes.get("phi.weight") or (0,))[0]
    if terms == 0 and options.initial != "embed":
        return f"adapter.initial is {options.initial!r} without any term, so its text would be the same for all prompts"
    gains = width if options.gain == "channel" else 1
    expected = {"phi.weight": (text_width, width), "aggregation.gain": (terms, gains)}
    if options.bottleneck is not None:
        expected["bottleneck.weight"] = (options.bottleneck, width)
    for name, wanted in expected.items():
        if name not in shapes:
            return f"it has no {name}"
        if name in shapes and tuple(shapes[name]) != wanted:
            return f"{name} has shape {tuple(shapes[name])}, but its metadata says {wanted}"
    bias = shapes.get("phi_bias", ())
    if len(bias) != 2 or not bias[0] or bias[1] != text_width:
        return f"phi_bias has shape {tuple(bias)}, but phi gives one or more rows of width {text_width}"
    if not any(name.startswith("layers.") for name in shapes):
        return "it has no layers"
    return None


LLMDIFF_ADAPTER = FileKind(
    name="an LLMDiff adapter",
    format="atelier-llmdiff-adapter-1",
    required={
        "llm": shown(4096, fewest=1),
        "llm_revision": HASH,
        "llm_dtype": one_of(*DTYPES),
        "llm_width": number(1, WIDEST),
        "num_terms": number(0, MOST_TERMS),
        "encoding": of_dataclass(EncodingOptions),
        "adapter": of_dataclass(AdapterOptions),
        "backbone": shown(),
        "backbone_hash": HASH,
        "num_steps": number(0, 10**12),
    },
    optional={"backbone_content": HASH, "training": shown(20_000)},
    shapes=_shapes,
    made_by="; training writes one to <run folder>/exports",
)

NO_ADAPTER = "no adapter is given: add adapter=PATH; training writes one to <run folder>/exports"
AdapterFile = Annotated[str | None, FirstLook(LLMDIFF_ADAPTER.read_header, NO_ADAPTER)]
"""The path of an adapter, which is large: its header is read first."""
