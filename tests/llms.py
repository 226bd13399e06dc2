"""Decoder-only language models of many families at the smallest useful size, with random weights."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

VOCABULARY, WIDTH, BLOCKS, CONTEXT = 64, 32, 3, 128
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
"""Every configuration takes these names, whatever its own are."""
GROUPED = {"num_key_value_heads": 2, "intermediate_size": 2 * WIDTH}
FAMILIES: dict[str, dict] = {
    "llama": GROUPED,
    "qwen2": GROUPED,
    "qwen3": {**GROUPED, "head_dim": 8},
    "mistral": {**GROUPED, "sliding_window": 4},
    "gemma2": {**GROUPED, "head_dim": 8, "sliding_window": 4},
    "gemma3_text": {**GROUPED, "head_dim": 8, "sliding_window": 4},
    "phi": GROUPED,
    "phi3": GROUPED,
    "olmo2": GROUPED,
    "cohere": GROUPED,
    "stablelm": GROUPED,
    "granite": GROUPED,
    "mixtral": {**GROUPED, "num_local_experts": 4},
    "gpt_oss": {**GROUPED, "head_dim": 8, "num_local_experts": 4, "sliding_window": 4},
    "gpt2": {},
    "gptj": {"rotary_dim": 4},
    "gpt_neox": {"intermediate_size": 2 * WIDTH},
    "opt": {"ffn_dim": 2 * WIDTH, "word_embed_proj_dim": WIDTH},
    "falcon": {},
    "bloom": {},
}
WITH_EXPERTS = ("mixtral", "gpt_oss")
"""Experts are computed per batch: the same token in another batch differs by rounding."""
WORDS = ("a", "red", "blue", "dog", "cat", "tree", "on", "the", "left", "of", "is", "very", "and", "small")


def tiny_llm(family: str = "llama", seed: int = 0, **changes) -> PreTrainedModel:
    """A causal model whose weights are large enough that every part of it matters."""
    config = CONFIG_MAPPING[family](**{**SIZES, **FAMILIES.get(family, {}), **changes})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return model


def tiny_tokenizer(adds_first: bool = True) -> PreTrainedTokenizerFast:
    """One token per word; adds a first token as Llama's does, or has none, as GPT-2's and Qwen's."""
    names = ["<pad>", "<s>", "</s>", "<unk>"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*names, *WORDS])}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if adds_first:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    first = {"bos_token": "<s>"} if adds_first else {}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>", **first)


def tiny_llm_folder(folder: Path, family: str = "llama", seed: int = 0, adds_first: bool = True, **changes) -> Path:
    """The same on disk, with its tokenizer."""
    tiny_llm(family, seed, **changes).save_pretrained(folder)
    tiny_tokenizer(adds_first).save_pretrained(folder)
    return folder
