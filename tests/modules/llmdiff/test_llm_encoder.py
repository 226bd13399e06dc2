"""What the block-wise score must be for any decoder-only language model, whatever its family."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedModel

from src.modules.llmdiff.decoder import Decoder, alone_mask, call_under, first, hidden_input, observed
from src.modules.llmdiff.encoder import LLMEncoder
from src.modules.llmdiff.language_model import LanguageModel
from src.modules.llmdiff.options import EncodingOptions
from src.modules.llmdiff.states import _difference, read_states
from tests.llms import BLOCKS, CONTEXT, FAMILIES, VOCABULARY, WIDTH, WITH_EXPERTS, tiny_llm, tiny_llm_folder

DEFAULT = EncodingOptions()
LENGTH = 9


@pytest.fixture(params=FAMILIES, scope="module")
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def decoder(family: str) -> Decoder:
    return Decoder(tiny_llm(family))


def token_ids(batch: int = 2, length: int = LENGTH, seed: int = 0) -> Tensor:
    return torch.randint(3, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def close(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).norm() <= 3e-6 * other.norm())


def every_block(decoder: Decoder, ids: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Input, output and context-free output of every block, nothing replayed."""
    found = []

    def observe(index: int, module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> None:
        hidden = hidden_input(module, args, kwargs)
        found.append((hidden, output, call_under(alone_mask(hidden), module, args, kwargs)))

    with torch.no_grad(), observed(decoder.blocks, observe):
        decoder.run(ids)
    return found


@contextmanager
def entering(block: nn.Module, hidden: Tensor) -> Iterator[None]:
    """While active, a block gets other hidden states."""

    def hook(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

    handle = block.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def outputs_of(decoder: Decoder, ids: Tensor) -> list[Tensor]:
    outputs: list[Tensor] = []
    with torch.no_grad(), observed(decoder.blocks, lambda i, module, args, kwargs, output: outputs.append(output)):
        decoder.run(ids)
    return outputs


def test_a_first_token_has_no_context(decoder: Decoder, family: str) -> None:
    tolerance = 1e-5 if family in WITH_EXPERTS else 0
    for _, output, alone in every_block(decoder, token_ids()):
        assert (output[:, 0] - alone[:, 0]).abs().max() <= tolerance
        assert (output[:, 1:] - alone[:, 1:]).abs().amax(-1).min() > 1e-3
    assert not read_states(decoder, token_ids(), DEFAULT)[:, 1:, 0].any()


def test_rounding_gives_a_first_token_no_context() -> None:
    contextual, alone = torch.randn(2, 2, 4, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    delta = _difference(contextual, alone)
    assert not delta[:, 0].any() and torch.equal(delta[:, 1:], (contextual - alone)[:, 1:])


def test_scores_telescope(decoder: Decoder) -> None:
    ids = token_ids()
    blocks = every_block(decoder, ids)
    alone = sum(free - hidden for hidden, _, free in blocks)
    assert close(read_states(decoder, ids, DEFAULT).sum(1), blocks[-1][1] - alone)


def test_what_is_computed_once_is_the_same_when_computed_twice(decoder: Decoder) -> None:
    ids = token_ids()
    deltas = read_states(decoder, ids, DEFAULT)[:, 1:].unbind(1)
    for delta, (_, output, alone) in zip(deltas, every_block(decoder, ids), strict=True):
        assert torch.equal(delta[:, 1:], (output - alone)[:, 1:])
    assert any(decoder.unreached("output"))


@pytest.mark.parametrize("options", [DEFAULT, EncodingOptions(stream="global"), EncodingOptions(state="attention")])
def test_later_tokens_change_nothing(decoder: Decoder, options: EncodingOptions) -> None:
    ids = token_ids()
    whole, prefix = read_states(decoder, ids, options), read_states(decoder, ids[:, :5], options)
    assert close(whole[:, :, :5], prefix)


def test_neither_padding_nor_neighbours_change_a_prompt(decoder: Decoder) -> None:
    ids = token_ids(3)
    padded = ids.clone()
    padded[1, 4:] = 0
    together = read_states(decoder, padded, DEFAULT)
    assert close(together[1, :, :4], read_states(decoder, ids[1:2, :4], DEFAULT)[0])
    assert close(together[2], read_states(decoder, ids[2:], DEFAULT)[0])


def test_context_free_is_one_token_at_a_time(decoder: Decoder) -> None:
    ids = token_ids(1)
    for block, (hidden, _, alone) in zip(decoder.blocks, every_block(decoder, ids), strict=True):
        for position in range(LENGTH):
            with entering(block, hidden[:, position : position + 1]):
                single = outputs_of(decoder, ids[:, :1])[decoder.blocks.index(block)]
            assert close(alone[:, position : position + 1], single)


def test_the_global_stream_is_one_token_at_a_time_through_all_blocks(decoder: Decoder) -> None:
    ids = token_ids(1)
    embedding, contextual = every_block(decoder, ids)[0][0], outputs_of(decoder, ids)
    deltas = read_states(decoder, ids, EncodingOptions(stream="global"))[:, 1:]
    for position in range(LENGTH):
        with entering(decoder.blocks[0], embedding[:, position : position + 1]):
            singles = outputs_of(decoder, ids[:, :1])
        for index, single in enumerate(singles):
            expected = contextual[index][:, position] - single[:, 0]
            assert (deltas[:, index, position] - expected).norm() <= 3e-6 * contextual[index][:, position].norm()


def test_with_the_first_token_in_sight_the_second_has_its_whole_context(decoder: Decoder) -> None:
    states = read_states(decoder, token_ids(), EncodingOptions(context="self+first"))[:, 1:]
    assert states[:, :, :2].abs().max() < 1e-5
    assert states[:, :, 2].abs().amax(-1).min() > 1e-3


def test_the_identity_path_cancels(decoder: Decoder) -> None:
    ids = token_ids()
    assert torch.equal(
        read_states(decoder, ids, EncodingOptions(state="update")), read_states(decoder, ids, EncodingOptions())
    )


def test_global_updates_telescope(decoder: Decoder) -> None:
    ids = token_ids()
    updates = read_states(decoder, ids, EncodingOptions(stream="global", state="update"))[:, 1:]
    outputs = read_states(decoder, ids, EncodingOptions(stream="global"))[:, 1:]
    assert (updates.sum(1) - outputs[:, -1]).norm() < 1e-5 * outputs[:, -1].norm()


def test_attention_alone(decoder: Decoder, family: str) -> None:
    """Blocks that run attention and MLP side by side differ by their attention alone."""
    ids = token_ids()
    attention = read_states(decoder, ids, EncodingOptions(state="attention"))
    assert not attention[:, 1:, 0].any() and attention[:, 1:, 1:].abs().amax(-1).min() > 1e-4
    if family in ("phi", "gptj", "cohere"):
        assert (attention - read_states(decoder, ids, DEFAULT)).abs().max() < 1e-5


def test_the_model_stays_as_it_was(family: str) -> None:
    model = tiny_llm(family)
    ids = token_ids()
    with torch.no_grad():
        before = model(ids).logits
    decoder = Decoder(model)
    for options in (DEFAULT, EncodingOptions(stream="global"), EncodingOptions(state="attention")):
        read_states(decoder, ids, options)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, before)
    for module in model.modules():
        assert "forward" not in vars(module) and not module._forward_hooks and not module._forward_pre_hooks


def test_rivals_are_what_their_names_say() -> None:
    model = tiny_llm("llama")
    decoder, ids = Decoder(model), token_ids()
    with torch.no_grad():
        stock = model.model(ids, output_hidden_states=True)
    outputs = outputs_of(decoder, ids)

    def feature(name: str) -> Tensor:
        return read_states(decoder, ids, EncodingOptions(features=name))

    assert torch.equal(feature("last")[:, 0], stock.last_hidden_state)
    assert torch.equal(feature("penultimate")[:, 0], stock.hidden_states[-2])
    assert torch.equal(feature("embed")[:, 0], stock.hidden_states[0])
    assert torch.equal(feature("sum"), torch.stack([stock.hidden_states[0], *outputs], dim=1))
    normed = torch.stack([(y - y.mean(-1, keepdim=True)) / y.std(-1, correction=0, keepdim=True) for y in outputs])
    assert torch.allclose(feature("ln_mean")[:, 0], normed.mean(0), atol=1e-4)
    # The last entry of hidden_states is after the final norm: the block's own output is not among them.
    assert not torch.allclose(outputs[-1], stock.hidden_states[-1])


def test_blocks_can_be_chosen() -> None:
    decoder, ids = Decoder(tiny_llm()), token_ids()
    some = EncodingOptions(blocks=[2, 0])
    assert torch.equal(read_states(decoder, ids, some), read_states(decoder, ids, DEFAULT)[:, [0, 1, 3]])
    assert EncodingOptions(blocks=[2, 0]) == EncodingOptions(blocks=(0, 2))


def test_half_precision_keeps_the_first_token_free_of_context() -> None:
    model = tiny_llm()
    exact = read_states(Decoder(model), token_ids(), DEFAULT)
    decoder = Decoder(model.to(torch.bfloat16))
    for _, output, alone in every_block(decoder, token_ids()):
        assert torch.equal(output[:, 0], alone[:, 0])
    rounded = read_states(decoder, token_ids(), DEFAULT)
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).norm() < 0.05 * exact.norm()


def test_gradients_of_gains_can_use_the_states() -> None:
    gain = torch.ones(BLOCKS + 1, requires_grad=True)
    states = read_states(Decoder(tiny_llm()), token_ids(), DEFAULT)
    torch.einsum("t,btld->bld", gain, states).square().sum().backward()
    assert gain.grad is not None and gain.grad.abs().min() > 0


def multiplications(monkeypatch: pytest.MonkeyPatch, run: Callable[[], object]) -> int:
    """That the linear layers do in a run."""
    total = 0
    original = nn.functional.linear

    def counted(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        nonlocal total
        total += hidden.numel() * weight.shape[0]
        return original(hidden, weight, bias)

    with monkeypatch.context() as patch:
        patch.setattr(nn.functional, "linear", counted)
        run()
    return total


@pytest.mark.parametrize(("state", "limit"), [("output", 2.0), ("attention", 1.15)])
def test_what_the_context_cannot_change_is_not_computed_again(
    monkeypatch: pytest.MonkeyPatch, state: str, limit: float
) -> None:
    """Llama's proportions; ``benchmarks/llm_encoding.py`` measures the time."""
    decoder, ids = Decoder(tiny_llm("llama", intermediate_size=86, num_key_value_heads=4)), token_ids()
    decoder.unreached(state)
    plain = multiplications(monkeypatch, lambda: decoder.run(ids))
    with_scores = multiplications(monkeypatch, lambda: read_states(decoder, ids, EncodingOptions(state=state)))
    assert 1 < with_scores / plain < limit


def test_two_sided_attention_is_refused() -> None:
    with pytest.raises(ValueError, match="lets tokens see later ones"):
        Decoder(tiny_llm("gemma3_text", use_bidirectional_attention=True))


def test_recurrent_models_are_refused() -> None:
    config = CONFIG_MAPPING["mamba"](vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=2, state_size=4)
    with pytest.raises(ValueError, match="attention mask|mixes tokens"):
        Decoder(AutoModelForCausalLM.from_config(config))


def test_blocks_that_cannot_be_told_are_refused() -> None:
    model: PreTrainedModel = tiny_llm()
    model.model.more_layers = nn.ModuleList(nn.Identity() for _ in range(BLOCKS))
    with pytest.raises(ValueError, match="2 lists of modules have that length"):
        Decoder(model)


@pytest.mark.parametrize(
    ("family", "kind"), [("bert", "encoder-only"), ("t5", "encoder-decoder"), ("vit", "no causal")]
)
def test_other_kinds_of_models_are_refused_by_their_configuration(tmp_path: Path, family: str, kind: str) -> None:
    CONFIG_MAPPING[family]().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=kind):
        LanguageModel.from_pretrained(str(tmp_path))


def test_a_folder_without_a_model_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no language model folder: it has no config\.json"):
        LanguageModel.from_pretrained(str(tmp_path))
    AutoConfig.for_model("llama").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="precision|dtype is 'half'"):
        LanguageModel.from_pretrained(str(tmp_path), dtype="half")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llm_folder(tmp_path_factory.mktemp("llm"))


@pytest.fixture
def language_model(folder: Path) -> LanguageModel:
    return LanguageModel.from_pretrained(str(folder))


def test_every_prompt_has_one_first_and_one_end_token(tmp_path: Path, language_model: LanguageModel) -> None:
    without = LanguageModel.from_pretrained(str(tiny_llm_folder(tmp_path, adds_first=False)))
    assert language_model.token_ids(["a dog", ""], DEFAULT) == [[1, 4, 7, 2], [1, 2]]
    # No first token of its own: the end token stands in, as for GPT-2 and Qwen.
    assert without.token_ids(["a dog", ""], DEFAULT) == [[2, 4, 7, 2], [2, 2]]
    assert without.token_ids(["a dog", ""], EncodingOptions(append_eos=False)) == [[2, 4, 7], [2]]
    assert without.token_ids(["a dog"], EncodingOptions(bos="default")) == [[4, 7, 2]]
    with pytest.raises(ValueError, match=r"'' has no token .* use encoding.bos=always"):
        without.token_ids([""], EncodingOptions(bos="default", append_eos=False))


def test_long_prompts_are_whole_or_refused(language_model: LanguageModel) -> None:
    encoder = LLMEncoder(language_model)
    assert encoder.count_tokens(["a dog " * 50]) == [102]
    assert encoder.encode(["a dog " * 50]).states.shape == (1, BLOCKS + 1, 102, WIDTH)
    with pytest.raises(ValueError, match=f"prompt of 202 tokens, but .* at most {CONTEXT}: shorten 'a dog a dog"):
        encoder.encode(["a dog", "a dog " * 100])
    shorter = LLMEncoder(language_model, EncodingOptions(max_length=5))
    with pytest.raises(ValueError, match="prompt of 6 tokens, but .* at most 5"):
        shorter.encode(["a dog on the"])


def test_prompts_of_unequal_length_are_padded_with_nothing(language_model: LanguageModel) -> None:
    encoder = LLMEncoder(language_model, batch_size=2)
    prompts = ["a red dog on the tree", "", "a cat", "a red dog on the tree"]
    text = encoder.encode(prompts)
    assert text.mask.sum(1).tolist() == encoder.count_tokens(prompts) == [8, 2, 4, 8]
    assert not text.states.transpose(1, 2)[~text.mask].any()
    assert torch.equal(text.states[0], text.states[3])
    for row, prompt, length in zip(text.states, prompts, [8, 2, 4, 8], strict=True):
        assert close(row[:, :length], encoder.encode([prompt]).states[0])


def test_the_empty_prompt_is_its_embedding_at_the_first_token(language_model: LanguageModel) -> None:
    text = LLMEncoder(language_model, EncodingOptions(append_eos=False)).encode([""])
    table = language_model.decoder.module.get_input_embeddings().weight
    assert torch.equal(text.states[0, 0, 0], table[1])
    assert not text.states[0, 1:].any()


def test_a_training_in_mixed_precision_changes_no_encoding(language_model: LanguageModel) -> None:
    encoder = LLMEncoder(language_model)
    expected = encoder.encode(["a red dog", "two"]).states
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encoder.encode(["a red dog", "two"]).states, expected)


def test_blocks_beyond_the_model_are_refused(language_model: LanguageModel) -> None:
    with pytest.raises(ValueError, match="names block 3, but .* has 3: 0 to 2"):
        LLMEncoder(language_model, EncodingOptions(blocks=[0, 3]))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"features": "first"}, "encoding.features is 'first'; choose one of llmdiff, last"),
        ({"stream": "both"}, "encoding.stream"),
        ({"state": "mlp"}, "encoding.state"),
        ({"context": "none"}, "encoding.context"),
        ({"bos": "never"}, "encoding.bos"),
        ({"blocks": []}, "names no block"),
        ({"max_length": 1}, "at least 2 tokens"),
    ],
)
def test_options_are_checked(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EncodingOptions(**wrong)


def test_outputs_may_be_tuples() -> None:
    tensor = torch.zeros(1)
    assert first(tensor) is tensor and first((tensor, None)) is tensor
