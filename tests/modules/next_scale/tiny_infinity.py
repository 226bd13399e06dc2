"""Infinity at the smallest useful size with random weights, and the reference's own, read by the converter."""

from pathlib import Path

import torch
from transformers import T5Config, T5EncoderModel, T5TokenizerFast

from src.data.world.tokenizers import write_t5_tokenizer
from src.modules.next_scale.infinity.autoencoder import BSQTokenizer
from src.modules.next_scale.infinity.convert import tokenizer_state, transformer_config, transformer_state
from src.modules.next_scale.infinity.pipeline import InfinityPipeline
from src.modules.next_scale.infinity.sampling import InfinityDraw
from src.modules.next_scale.infinity.transformer import InfinityTransformer
from src.modules.next_scale.loop import Condition, Generation
from src.modules.next_scale.schedule import INFINITY_PREFIXES, ScaleSchedule, ScaleSchedules, infinity_grids
from tests.modules.next_scale.golden import golden
from tests.modules.next_scale.tiny_switti import shaken

GRIDS = {
    "1.000": [[1, 1], [2, 2], [3, 3], [4, 4]],
    "0.500": [[1, 1], [1, 2], [2, 3], [3, 6]],
}
PREFIXES = {"small": 3, "large": 4}
SCHEDULE = ScaleSchedules(GRIDS, PREFIXES).schedule("1.000", "large")
BITS, TEXT, LENGTH = 4, 16, 12


def tiny_transformer(**changes: object) -> InfinityTransformer:
    sizes = {"depth": 2, "width": 32, "num_heads": 2, "token_bits": BITS, "text_channels": TEXT, "max_scales": 4}
    return shaken(InfinityTransformer(**{**sizes, "max_text_length": LENGTH, **changes}))


def tiny_vae(**changes: object) -> BSQTokenizer:
    sizes = {"latent_channels": BITS, "base_channels": 8, "channel_multipliers": [1, 2], "layers_per_block": 1}
    torch.manual_seed(0)
    return BSQTokenizer(**{**sizes, "patch_size": 2, "norm_num_groups": 4, **changes}).requires_grad_(False)


def tiny_pipeline(folder: Path, **changes: object) -> InfinityPipeline:
    write_t5_tokenizer(folder / "words", LENGTH)
    words = T5TokenizerFast.from_pretrained(folder / "words")
    config = T5Config(vocab_size=len(words), d_model=TEXT, d_kv=8, d_ff=16, num_layers=1, num_heads=2, dropout_rate=0.0)
    torch.manual_seed(0)
    parts = {"transformer": tiny_transformer(), "vae": tiny_vae(), "scale_grids": GRIDS, "scale_prefixes": PREFIXES}
    pipeline = InfinityPipeline(text_encoder=T5EncoderModel(config).eval(), tokenizer=words, **{**parts, **changes})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def random_text(seed: int, rows: int = 2, length: int = 5) -> torch.Tensor:
    return torch.randn(rows, length, TEXT, generator=torch.Generator().manual_seed(seed))


def generation(images: int = 2, guidance: object = 3.0, **changes: object) -> Generation:
    """A fresh batch of a tiny model; image i is drawn from prompt i with seed i, wherever it stands."""
    transformer = tiny_transformer(**changes)
    text = torch.cat([random_text(index, 1) for index in range(images)])
    nothing = transformer.unconditional[:5].expand_as(text)
    model = InfinityDraw.planned(transformer, SCHEDULE, guidance, 1.0, 0, 0.0, (0,))
    generators = [torch.Generator().manual_seed(index) for index in range(images)]
    return Generation(model, transformer.condition(torch.cat([text, nothing])), images, generators)


def golden_schedule() -> ScaleSchedule:
    return ScaleSchedules(infinity_grids(), INFINITY_PREFIXES).schedule("1.000", "0.06M")


def golden_transformer() -> InfinityTransformer:
    state = transformer_state(golden("infinity_A", "transformer"))
    model = InfinityTransformer(**transformer_config(state, "the golden file"))
    model.load_state_dict(state)
    return model.requires_grad_(False)


def golden_tokenizer() -> BSQTokenizer:
    model = BSQTokenizer(16, 32, [1, 1, 1, 1, 1], 1, 16)
    model.load_state_dict(tokenizer_state(golden("infinity_A", "vae")))
    return model.requires_grad_(False)


def golden_condition(transformer: InfinityTransformer, guided: bool = True) -> Condition:
    text = golden("infinity_A", "inputs")["text.kv_compact"][None]
    return transformer.condition(
        torch.cat([text, transformer.unconditional[None, : text.shape[1]]]) if guided else text
    )
