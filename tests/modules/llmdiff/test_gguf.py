"""A language model in one GGUF file: the same states as from its folder."""

from pathlib import Path

import pytest
import torch
from gguf import GGUFWriter
from transformers import Qwen2Config, Qwen2ForCausalLM

from src.data.first_looks import is_gguf
from src.modules.llmdiff import language_model
from src.modules.llmdiff.language_model import LanguageModel
from src.modules.llmdiff.options import EncodingOptions

WORDS = ["<s>", "</s>", *(chr(code) for code in range(97, 123)), "\u0120", "ca", "cat", "do", "dog", "\u0120dog"]
MERGES = ["c a", "ca t", "d o", "do g", "\u0120 dog"]
SIZES = {"vocab_size": len(WORDS), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def in_gguf(name: str) -> str:
    """The name that a weight of Qwen 2 has in such files."""
    whole = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    if name in whole or name == "lm_head.weight":
        return whole.get(name, "output.weight")
    _, _, block, *part, kind = name.split(".")
    return f"blk.{block}.{NAMES['.'.join(part)]}.{kind}"


def write(path: Path, model: Qwen2ForCausalLM) -> Path:
    """Write a model with its tokenizer, unquantised."""
    config, writer = model.config, GGUFWriter(path, "qwen2")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(WORDS)
    writer.add_token_types([3, 3, *[1] * (len(WORDS) - 2)])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    for name, weights in model.state_dict().items():
        writer.add_tensor(in_gguf(name), weights.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Qwen2ForCausalLM]:
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**SIZES, **HEADS, tie_word_embeddings=False, rms_norm_eps=1e-6)).eval()
    return write(tmp_path / "small.gguf", model), model


def test_its_states_and_tokens_are_those_of_the_model(saved: tuple[Path, Qwen2ForCausalLM]) -> None:
    path, model = saved
    found = LanguageModel.from_pretrained(str(path))
    assert (found.width, found.num_blocks, found.context_length) == (32, 2, 64)
    assert (
        found.identity.revision
        == LanguageModel.from_pretrained(str(path.rename(path.with_name("b.gguf")))).identity.revision
    )
    found = LanguageModel.from_pretrained(str(path.with_name("b.gguf")), dtype="float32")
    (ids,) = found.token_ids(["cat dog"], EncodingOptions(bos="default", append_eos=False))
    assert ids == [WORDS.index("cat"), WORDS.index("\u0120dog")]
    batch = torch.tensor([ids])
    with torch.no_grad():
        expected = model.model(batch, output_hidden_states=True).hidden_states
        states = found.decoder.module(batch, output_hidden_states=True).hidden_states
    for state, wanted in zip(states, expected, strict=True):
        torch.testing.assert_close(state, wanted)


def test_a_file_of_another_kind_is_refused_by_its_header(tmp_path: Path) -> None:
    """Of an encoder no weight is read, for this one has none; a cut one and a text are said, too."""
    writer = GGUFWriter(tmp_path / "bert.gguf", "bert")
    writer.add_block_count(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ValueError, match="cannot be loaded without code of its own: GGUF model with architecture bert"):
        LanguageModel.from_pretrained(str(tmp_path / "bert.gguf"))
    (tmp_path / "cut.gguf").write_bytes((tmp_path / "bert.gguf").read_bytes()[:40])
    with pytest.raises(ValueError, match="cannot be loaded"):
        LanguageModel.from_pretrained(str(tmp_path / "cut.gguf"))
    (tmp_path / "text.gguf").write_text("hello", encoding="utf-8")
    assert not is_gguf(tmp_path / "text.gguf")
    with pytest.raises(ValueError, match="and it is no GGUF file"):
        LanguageModel.from_pretrained(str(tmp_path / "text.gguf"))


def test_the_package_that_reads_it_is_named(
    saved: tuple[Path, Qwen2ForCausalLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(language_model, "is_gguf_available", lambda: False)
    with pytest.raises(ValueError, match=r"needs a package more: pip install -e '\.\[gguf\]'"):
        LanguageModel.from_pretrained(str(saved[0]))
