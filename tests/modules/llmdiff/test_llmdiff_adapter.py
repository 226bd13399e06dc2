"""The adapter in a stock UNet: the pretrained model at the start, gone without a trace at the end."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from src.modules.backbones.base import Text
from src.modules.backbones.unet import UNetBackbone
from src.modules.llmdiff.adapter import LLMDiffAdapter
from src.modules.llmdiff.aggregation import Aggregation
from src.modules.llmdiff.attention import cross_attentions, pack, unpack
from src.modules.llmdiff.encoder import LLMEncoder, TextStates
from src.modules.llmdiff.language_model import LanguageModel
from src.modules.llmdiff.options import AdapterOptions, EncodingOptions
from tests.llms import BLOCKS, WIDTH, tiny_llm_folder
from tests.tiny import LENGTH, SDXL_UNET, tiny_sd, tiny_sdxl

PIPELINES = {"sd": tiny_sd, "sdxl": tiny_sdxl}
PROMPTS = ["a red dog on the tree", "", "a very small cat on the left of the blue tree"]


@pytest.fixture(params=["sd", "sdxl"])
def backbone(request: pytest.FixtureRequest, tmp_path: Path) -> UNetBackbone:
    return UNetBackbone(PIPELINES[request.param](tmp_path), request.param)


@pytest.fixture
def sd(tmp_path: Path) -> UNetBackbone:
    return UNetBackbone(tiny_sd(tmp_path), "sd")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> LLMEncoder:
    return LLMEncoder(LanguageModel.from_pretrained(str(tiny_llm_folder(tmp_path_factory.mktemp("llm")))))


def fresh(backbone: UNetBackbone, encoder: LLMEncoder, **options) -> LLMDiffAdapter:
    torch.manual_seed(0)
    return LLMDiffAdapter.for_backbone(backbone, encoder, AdapterOptions(**options))


def trained(backbone: UNetBackbone, encoder: LLMEncoder, **options) -> LLMDiffAdapter:
    """Weights away from where they started, so that everything matters."""
    adapter = fresh(backbone, encoder, **options)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return adapter.eval()


def drawn(backbone: UNetBackbone, text: Text, seed: int = 0) -> Tensor:
    """The UNet's prediction; every row has the same noise."""
    rows = len(text.prompt_embeds)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed)).expand(rows, -1, -1, -1)
    added = backbone.added_conditions(text, (8, 8))
    return backbone.unet(noise, 500, encoder_hidden_states=text.prompt_embeds, added_cond_kwargs=added).sample


def close(one: Tensor, other: Tensor, tolerance: float = 1e-5) -> bool:
    return bool((one - other).norm() <= tolerance * other.norm())


@torch.no_grad()
def test_at_the_start_every_prompt_is_the_empty_one_of_the_pretrained_model(
    backbone: UNetBackbone, encoder: LLMEncoder
) -> None:
    stock = drawn(backbone, backbone.encode_text([""] * len(PROMPTS)))
    adapter = fresh(backbone, encoder)
    for mode in (True, False):
        generators = torch.Generator().manual_seed(0)
        with adapter.train(mode).installed(backbone.unet):
            started = drawn(backbone, adapter(encoder.encode(PROMPTS), generators))
        assert close(started, stock, 1e-6)
    assert not close(drawn(backbone, backbone.encode_text(["a dog"])), stock[:1], 1e-3)


@torch.no_grad()
def test_a_start_from_the_mean_is_the_pretrained_model_on_the_mean(backbone: UNetBackbone, encoder: LLMEncoder) -> None:
    empty = backbone.encode_text([""] * len(PROMPTS))
    adapter = fresh(backbone, encoder, phi_bias="mean").eval()
    with adapter.installed(backbone.unet):
        started = drawn(backbone, adapter(encoder.encode(PROMPTS)))
    mean = Text(empty.prompt_embeds.mean(1, keepdim=True), empty.pooled_prompt_embeds)
    assert close(started, drawn(backbone, mean), 1e-6)
    assert not close(started, drawn(backbone, empty), 1e-4)


@torch.no_grad()
def test_beyond_the_pretrained_length_the_last_row_goes_on(sd: UNetBackbone, encoder: LLMEncoder) -> None:
    adapter = fresh(sd, encoder).eval()
    with adapter.installed(sd.unet):
        started = drawn(sd, adapter(encoder.encode(["a dog " * 30])))
    rows = sd.encode_text([""]).prompt_embeds
    longer = torch.cat([rows, rows[:, -1:].expand(-1, 62 - LENGTH, -1)], dim=1)
    assert close(started, drawn(sd, Text(longer)), 1e-6)


@torch.no_grad()
def test_the_original_attention_is_intact(backbone: UNetBackbone, encoder: LLMEncoder) -> None:
    """With phi bypassed, the base model's own text gives the base model's own prediction."""
    text = backbone.encode_text(["a dog on the grass", "a cat"])
    stock = drawn(backbone, text)
    seen = torch.ones(text.prompt_embeds.shape[:2])
    packed = pack(text.prompt_embeds, torch.randn(*seen.shape, WIDTH), seen, seen)
    with fresh(backbone, encoder).installed(backbone.unet):
        assert close(drawn(backbone, Text(packed, text.pooled_prompt_embeds)), stock, 1e-6)


@torch.no_grad()
def test_a_layer_is_the_papers_formula(sd: UNetBackbone, encoder: LLMEncoder) -> None:
    adapter = trained(sd, encoder)
    packed = adapter(encoder.encode(PROMPTS)).prompt_embeds
    name, attention = next(iter(cross_attentions(sd.unet).items()))
    hidden = torch.randn(3, 5, attention.to_q.in_features)
    layer = adapter.layers[name.replace(".", "/")]
    with adapter.installed(sd.unet):
        joined = attention(hidden, packed)

    def attend(module: nn.Module, text: Tensor, seen: Tensor, out: nn.Module) -> Tensor:
        query, key, value = (
            linear(given).unflatten(-1, (attention.heads, -1)).transpose(1, 2)
            for linear, given in ((module.to_q, hidden), (module.to_k, text), (module.to_v, text))
        )
        logits = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        weights = logits.masked_fill(~seen[:, None, None].bool(), -torch.inf).softmax(-1)
        return out((weights @ value).transpose(1, 2).flatten(2))

    width = adapter.text_width
    original = attend(attention, packed[..., :width], packed[..., -2], attention.to_out[0])
    additional = attend(layer, packed[..., width:-2], packed[..., -1], layer.to_out)
    expected = original * layer.a1 * layer.b1.exp() + additional * layer.a2 * layer.b2.exp()
    assert torch.allclose(joined, expected, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("phi_bias", ["rows", "mean"])
def test_padding_and_neighbours_change_nothing(backbone: UNetBackbone, encoder: LLMEncoder, phi_bias: str) -> None:
    adapter = trained(backbone, encoder, phi_bias=phi_bias)
    text = encoder.encode(PROMPTS)
    garbage = TextStates(text.states + 100 * (~text.mask)[:, None, :, None], text.mask)
    with adapter.installed(backbone.unet):
        together = drawn(backbone, adapter(text))
        assert torch.equal(drawn(backbone, adapter(garbage)), together)
        for row, prompt in zip(together, PROMPTS, strict=True):
            assert close(drawn(backbone, adapter(encoder.encode([prompt])))[0], row)
    assert not close(together[0], together[1], 1e-3)


@torch.no_grad()
def test_a_mask_of_the_unet_adds_to_the_texts_own(sd: UNetBackbone, encoder: LLMEncoder) -> None:
    adapter = trained(sd, encoder, phi_bias="mean")
    short, long = encoder.encode(["a red dog"]), encoder.encode(["a red dog"])
    longer = TextStates(F.pad(long.states, (0, 0, 0, 3), value=1.0), F.pad(long.mask, (0, 3), value=True))
    noise = torch.randn(1, 4, 8, 8)
    with adapter.installed(sd.unet):
        expected = sd.unet(noise, 500, encoder_hidden_states=adapter(short).prompt_embeds).sample
        masked = sd.unet(
            noise,
            500,
            encoder_hidden_states=adapter(longer).prompt_embeds,
            encoder_attention_mask=F.pad(long.mask, (0, 3)),
        ).sample
    assert close(masked, expected)


def test_all_that_is_trained_gets_a_gradient_and_nothing_else(backbone: UNetBackbone, encoder: LLMEncoder) -> None:
    adapter = trained(backbone, encoder).train()
    generators = [torch.Generator().manual_seed(row) for row in range(3)]
    with adapter.installed(backbone.unet):
        drawn(backbone, adapter(encoder.encode(PROMPTS), generators)).square().mean().backward()
    gradients = {name: parameter.grad for name, parameter in adapter.named_parameters()}
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients.values())
    assert {name.rpartition(".")[2] for name in gradients} >= {"gain", "rho", "phi_bias", "a1", "b1", "a2", "b2"}
    frozen = [*backbone.unet.parameters(), *encoder.language_model.decoder.module.parameters()]
    assert all(parameter.grad is None for parameter in frozen)


@pytest.mark.parametrize("branch", ["zero_output", "zero_weight"])
def test_the_first_step_opens_the_additional_branch(sd: UNetBackbone, encoder: LLMEncoder, branch: str) -> None:
    adapter = fresh(sd, encoder, branch_init=branch).train()
    with adapter.installed(sd.unet):
        drawn(sd, adapter(encoder.encode(PROMPTS), torch.Generator())).square().mean().backward()
    opened = "to_out.weight" if branch == "zero_output" else "a2"
    gradients = {name: p.grad for name, p in adapter.named_parameters() if name.endswith((opened, "phi.weight"))}
    assert len(gradients) == 1 + len(adapter.layers)
    assert all(gradient.abs().sum() > 0 for gradient in gradients.values())


def test_it_learns(sd: UNetBackbone, encoder: LLMEncoder) -> None:
    """A few steps towards the base model's own predictions for two prompts."""
    prompts = ["a red dog", "a blue cat"]
    adapter = fresh(sd, encoder).train()
    with torch.no_grad():
        target = drawn(sd, Text(torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(1))))
    text, optimizer, losses = encoder.encode(prompts), torch.optim.AdamW(adapter.parameters(), 1e-2), []
    for step in range(12):
        with adapter.installed(sd.unet):
            loss = F.mse_loss(drawn(sd, adapter(text, torch.Generator().manual_seed(step))), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_checkpointing_the_unet_changes_no_gradient(sd: UNetBackbone, encoder: LLMEncoder) -> None:
    adapter, text = trained(sd, encoder), encoder.encode(PROMPTS)

    def gradients() -> list[Tensor]:
        adapter.zero_grad()
        with adapter.installed(sd.unet):
            drawn(sd, adapter(text)).square().mean().backward()
        return [parameter.grad.clone() for parameter in adapter.parameters() if parameter.grad is not None]

    plain = gradients()
    sd.unet.enable_gradient_checkpointing()
    sd.unet.train()
    assert all(close(one, other) for one, other in zip(gradients(), plain, strict=True))


@torch.no_grad()
def test_it_comes_and_goes_without_a_trace(backbone: UNetBackbone, encoder: LLMEncoder) -> None:
    unet, text = backbone.unet, backbone.encode_text(["a dog"])
    before, keys, processors = drawn(backbone, text), set(unet.state_dict()), dict(unet.attn_processors)
    adapter = trained(backbone, encoder)
    with adapter.installed(unet):
        assert set(unet.state_dict()) == keys and len(list(unet.parameters())) == len(keys)
        assert unet.attn_processors.keys() == processors.keys()
    with pytest.raises(RuntimeError, match="in the middle"), adapter.installed(unet):
        raise RuntimeError("in the middle")
    assert all(unet.attn_processors[name] is processor for name, processor in processors.items())
    assert torch.equal(drawn(backbone, text), before)


@torch.no_grad()
def test_strength_goes_from_the_base_to_the_adapter(backbone: UNetBackbone, encoder: LLMEncoder) -> None:
    adapter = trained(backbone, encoder, phi_bias="mean")
    text = adapter(encoder.encode(["a red dog"]))

    def with_strength(strength: float) -> Tensor:
        with adapter.installed(backbone.unet, strength=strength):
            return drawn(backbone, text)

    base = Text(text.prompt_embeds[..., : adapter.text_width], text.pooled_prompt_embeds)
    none, half, whole = (with_strength(strength) for strength in (0.0, 0.5, 1.0))
    assert close(none, drawn(backbone, base), 1e-6)
    with adapter.installed(backbone.unet):
        assert torch.equal(drawn(backbone, text), whole)
    distances = [(one - none).norm() for one in (half, whole)]
    assert 0 < distances[0] < distances[1]
    with pytest.raises(ValueError, match="strength is -1"), adapter.installed(backbone.unet, strength=-1):
        pass


@contextmanager
def low_rank_change(unet: nn.Module, scale: float = 0.3) -> Iterator[None]:
    """A LoRA as its users load it: keys of every cross-attention wrapped, the layer itself inside."""

    class Wrapped(nn.Module):
        def __init__(self, base_layer: nn.Linear) -> None:
            super().__init__()
            self.base_layer = base_layer
            self.down, self.up = nn.Linear(base_layer.in_features, 2), nn.Linear(2, base_layer.out_features)

        @property
        def weight(self) -> Tensor:
            return self.base_layer.weight

        def forward(self, hidden: Tensor) -> Tensor:
            return self.base_layer(hidden) + scale * self.up(self.down(hidden))

    attentions = cross_attentions(unet).values()
    for attention in attentions:
        for name in ("to_q", "to_k", "to_v"):
            setattr(attention, name, Wrapped(getattr(attention, name)))
    try:
        yield
    finally:
        for attention in attentions:
            for name in ("to_q", "to_k", "to_v"):
                setattr(attention, name, getattr(attention, name).base_layer)


@torch.no_grad()
def test_a_lora_acts_on_the_original_attention(backbone: UNetBackbone, encoder: LLMEncoder) -> None:
    adapter = trained(backbone, encoder)
    text = adapter(encoder.encode(["a red dog"]))
    base = Text(text.prompt_embeds[..., : adapter.text_width], text.pooled_prompt_embeds)
    with adapter.installed(backbone.unet):
        without = drawn(backbone, text)
    with low_rank_change(backbone.unet):
        assert fresh(backbone, encoder).layers.keys() == adapter.layers.keys()
        with adapter.installed(backbone.unet):
            assert not close(drawn(backbone, text), without, 1e-3)
        with adapter.installed(backbone.unet, strength=0):
            changed = drawn(backbone, text)
        assert close(changed, drawn(backbone, base), 1e-6)
    with adapter.installed(backbone.unet):
        assert torch.equal(drawn(backbone, text), without)


@torch.no_grad()
def test_a_lora_of_peft_loads_beside_the_adapter(sd: UNetBackbone, encoder: LLMEncoder) -> None:
    peft = pytest.importorskip("peft", reason="the extra peft loads LoRAs")
    adapter = trained(sd, encoder)
    text = adapter(encoder.encode(["a red dog"]))
    with adapter.installed(sd.unet):
        without = drawn(sd, text)
        sd.unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_k"], init_lora_weights=False))
        changed = drawn(sd, text)
        sd.unet.disable_adapters()
        assert torch.equal(drawn(sd, text), without)
    assert not close(changed, without, 1e-3)


@torch.no_grad()
def test_a_controlnet_gets_the_original_attentions_text(backbone: UNetBackbone, encoder: LLMEncoder) -> None:
    adapter = trained(backbone, encoder)
    text = adapter(encoder.encode(PROMPTS))
    base = Text(text.prompt_embeds[..., : adapter.text_width], text.pooled_prompt_embeds)
    controlnet = ControlNetModel.from_unet(backbone.unet, conditioning_channels=3).eval()
    image, noise = torch.rand(3, 3, 64, 64), torch.randn(3, 4, 8, 8)

    def residuals(given: Text) -> Tensor:
        added = backbone.added_conditions(given, (8, 8))
        return controlnet(
            noise, 500, encoder_hidden_states=given.prompt_embeds, controlnet_cond=image, added_cond_kwargs=added
        ).mid_block_res_sample

    # A ControlNet's outputs start at zero.
    nn.init.normal_(controlnet.controlnet_mid_block.weight)
    with adapter.installed(backbone.unet, controlnet):
        controlled = residuals(text)
    assert controlled.abs().mean() > 0.1 and close(controlled, residuals(base), 1e-6)


@torch.no_grad()
def test_text_that_is_not_the_adapters_is_refused(sd: UNetBackbone, encoder: LLMEncoder) -> None:
    with (
        fresh(sd, encoder).installed(sd.unet),
        pytest.raises(ValueError, match="the UNet got text of width 16, which is not the adapter's"),
    ):
        drawn(sd, sd.encode_text(["a dog"]))


def test_two_adapters_on_one_unet_are_refused(sd: UNetBackbone, encoder: LLMEncoder) -> None:
    adapter = fresh(sd, encoder)
    with adapter.installed(sd.unet), pytest.raises(ValueError, match="already has"), adapter.installed(sd.unet):
        pass


def test_a_unet_of_other_layers_is_refused(sd: UNetBackbone, encoder: LLMEncoder, tmp_path: Path) -> None:
    adapter = fresh(sd, encoder)
    other = UNetBackbone(tiny_sdxl(tmp_path), "sdxl")
    with pytest.raises(ValueError, match="made for another UNet: .* layers differ"), adapter.installed(other.unet):
        pass


def test_it_is_saved_with_what_it_belongs_to(backbone: UNetBackbone, encoder: LLMEncoder, tmp_path: Path) -> None:
    adapter = trained(backbone, encoder)
    path = adapter.save(tmp_path / "a" / "adapter.safetensors", encoder, backbone, 800, "rate 0.001")
    loaded = LLMDiffAdapter.load(path, backbone)
    assert loaded.state_dict().keys() == adapter.state_dict().keys()
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in adapter.state_dict().items())
    assert loaded.options == adapter.options and loaded.content_hash() == adapter.content_hash()
    with torch.no_grad(), adapter.installed(backbone.unet):
        before = drawn(backbone, adapter(encoder.encode(PROMPTS)))
    with torch.no_grad(), loaded.installed(backbone.unet):
        assert torch.equal(drawn(backbone, loaded(encoder.encode(PROMPTS))), before)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert metadata["llm"] == encoder.identity.name and metadata["llm_revision"] == encoder.identity.revision
    assert (metadata["llm_dtype"], metadata["num_steps"], metadata["training"]) == (
        "float32",
        "800",
        "rate 0.001",
    )
    assert metadata["backbone_hash"] == backbone.fingerprint
    assert json.loads(metadata["encoding"])["features"] == "llmdiff"
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_loading_counts_the_tensors_that_it_applies(
    sd: UNetBackbone, encoder: LLMEncoder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    adapter = fresh(sd, encoder)
    path = adapter.save(tmp_path / "adapter.safetensors", encoder, sd, 0)
    with caplog.at_level(logging.INFO):
        LLMDiffAdapter.load(path, sd)
    assert f"{len(adapter.state_dict())} tensors of" in caplog.text
    name = next(iter(adapter.layers))
    del adapter.layers[name]
    partial = adapter.save(tmp_path / "partial.safetensors", encoder, sd, 0)
    with pytest.raises(ValueError, match=r"only \d+ of the \d+ tensors in .* fit the adapter's \d+; the first"):
        LLMDiffAdapter.load(partial, sd)


def test_a_file_of_another_unet_is_refused(sd: UNetBackbone, encoder: LLMEncoder, tmp_path: Path) -> None:
    path = fresh(sd, encoder).save(tmp_path / "adapter.safetensors", encoder, sd, 0)
    with pytest.raises(ValueError, match="made for the UNet of sd .* give its backbone"):
        LLMDiffAdapter.load(path, UNetBackbone(tiny_sdxl(tmp_path), "sdxl"))


def test_files_that_are_no_adapter_are_said(sd: UNetBackbone, encoder: LLMEncoder, tmp_path: Path) -> None:
    path = fresh(sd, encoder).save(tmp_path / "adapter.safetensors", encoder, sd, 0)
    with pytest.raises(ValueError, match="no file at .* give the path of an LLMDiff adapter"):
        LLMDiffAdapter.load(tmp_path / "none.safetensors", sd)
    path.write_bytes(path.read_bytes()[:-4] + bytes(4))
    with pytest.raises(ValueError, match="changed after it was written"):
        LLMDiffAdapter.load(path, sd)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="is not an LLMDiff adapter: its format is None"):
        LLMDiffAdapter.load(path, sd)


def test_another_language_model_is_refused(
    sd: UNetBackbone, encoder: LLMEncoder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = fresh(sd, encoder).save(tmp_path / "adapter.safetensors", encoder, sd, 0)
    adapter = LLMDiffAdapter.load(path, sd)
    adapter.check_encoder(encoder)
    wider = LLMEncoder(LanguageModel.from_pretrained(str(tiny_llm_folder(tmp_path / "wide", hidden_size=64))))
    with pytest.raises(ValueError, match="gives 4 states of width 64 per token, but this adapter takes 4 of width 32"):
        adapter.check_encoder(wider)
    other = LLMEncoder(LanguageModel.from_pretrained(str(tiny_llm_folder(tmp_path / "other", seed=1))))
    with pytest.raises(ValueError, match="was trained with .* give the same language model"):
        adapter.check_encoder(other)
    fresh(sd, encoder).check_encoder(other)
    assert not caplog.text
    half = LanguageModel.from_pretrained(encoder.identity.name, dtype="bfloat16")
    adapter.check_encoder(LLMEncoder(half))
    assert "trained with a language model in float32, but this one runs in bfloat16" in caplog.text


@pytest.mark.parametrize(
    "options",
    [
        {"initial": "zero"},
        {"initial": "learned"},
        {"initial": "noise"},
        {"score": "difference"},
        {"gain": "channel"},
        {"gain": "fixed", "gain_init": 0.5},
        {"noise": "always"},
        {"noise": "off"},
        {"normalisation": "layer_norm"},
        {"normalisation": "none", "final_norm": "none"},
        {"phi_bias": "mean", "phi_std": 0.01},
        {"key_value": "phi"},
        {"bottleneck": 8},
        {"branch_init": "zero_weight"},
        {"pooling": "mean"},
    ],
    ids=str,
)
def test_every_reading_trains_and_is_saved(
    backbone: UNetBackbone, encoder: LLMEncoder, tmp_path: Path, options: dict
) -> None:
    adapter = trained(backbone, encoder, **options).train()
    with adapter.installed(backbone.unet):
        drawn(backbone, adapter(encoder.encode(PROMPTS), torch.Generator().manual_seed(0))).square().mean().backward()
    # A parameter without a gradient would stop training on several processes.
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in adapter.parameters())
    loaded = LLMDiffAdapter.load(adapter.save(tmp_path / "a.safetensors", encoder, backbone, 0), backbone)
    assert loaded.content_hash() == adapter.content_hash() and loaded.options == AdapterOptions(**options)


@pytest.mark.parametrize("features", ["last", "penultimate", "embed", "ln_mean", "sum"])
def test_every_rival_drives_the_same_adapter(sd: UNetBackbone, encoder: LLMEncoder, features: str) -> None:
    rival = LLMEncoder(encoder.language_model, EncodingOptions(features=features))
    adapter = trained(sd, rival).train()
    with adapter.installed(sd.unet):
        drawn(sd, adapter(rival.encode(PROMPTS), torch.Generator())).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in adapter.parameters())
    with pytest.raises(ValueError, match="use the encoding options that it was trained with"):
        adapter(TextStates(torch.zeros(1, 9, 2, WIDTH), torch.ones(1, 2, dtype=torch.bool)))


def states(batch: int = 2, length: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, BLOCKS + 1, length, WIDTH, generator=generator), torch.ones(batch, length).bool()


def test_the_literal_sum() -> None:
    options = AdapterOptions(normalisation="none", final_norm="none", noise="off")
    joined = Aggregation(WIDTH, BLOCKS, options)
    given, mask = states()
    assert torch.allclose(joined(given, mask), given.sum(1), atol=1e-6)
    with torch.no_grad():
        joined.gain.copy_(torch.tensor([[2.0], [-1.0], [0.5]]))
    expected = given[:, 0] + 2 * given[:, 1] - given[:, 2] + 0.5 * given[:, 3]
    assert torch.allclose(joined(given, mask), expected, atol=1e-6)


def test_differences_of_adjacent_blocks_span_the_same_texts() -> None:
    """By parts: gains w of deltas are gains cumsum(w) of differences."""
    options = AdapterOptions(normalisation="none", final_norm="none", noise="off")
    delta = Aggregation(WIDTH, BLOCKS, options)
    difference = Aggregation(WIDTH, BLOCKS, replace(options, score="difference"))
    given, mask = states()
    constant = difference(given, mask)
    assert torch.allclose(constant, given[:, 0] + given[:, 1], atol=1e-6), "constant gains leave one block"
    weights = torch.tensor([[0.3], [-1.2], [0.7]])
    with torch.no_grad():
        delta.gain.copy_(weights)
        difference.gain.copy_(weights.cumsum(0))
    assert torch.allclose(delta(given, mask), difference(given, mask), atol=1e-5)


def test_rms_takes_the_magnitude_and_leaves_nothing_as_nothing() -> None:
    joined = Aggregation(WIDTH, BLOCKS, AdapterOptions(noise="off", final_norm="none"))
    given, mask = states()
    loud = given * torch.tensor([1.0, 1e5, 1e-2, 1.0])[:, None, None]
    assert torch.allclose(joined(loud, mask), joined(given, mask), atol=1e-4)
    given[:, 1:, 0] = 0
    only_start = given[:, 0, 0] / given[:, 0, 0].square().mean(-1, keepdim=True).sqrt()
    assert torch.allclose(joined(given, mask)[:, 0], only_start, atol=1e-5)


def test_noise_is_the_sum_over_blocks_and_each_prompts_own() -> None:
    options = AdapterOptions(normalisation="none", final_norm="none", initial="zero")
    joined = Aggregation(WIDTH, BLOCKS, options).train()
    with torch.no_grad():
        joined.gain.zero_()
        joined.rho.copy_(torch.tensor([-2.0, 0.0, 1.0]))
    length = 500
    mask = torch.ones(2, length, dtype=torch.bool)
    mask[1, 7:] = False
    given = torch.zeros(2, BLOCKS + 1, length, WIDTH)

    def noise(rows: slice = slice(None), shortened: int = length) -> Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)][rows]
        return joined(given[rows, :, :shortened], mask[rows, :shortened], generators)

    expected = (2 * F.softplus(joined.rho).sum()).sqrt()
    assert abs(noise()[0].std() / expected - 1) < 0.03
    assert torch.equal(noise(), noise()) and torch.equal(noise(slice(1, 2), 7)[0], noise()[1, :7])
    assert not noise()[1, 7:].any()
    with pytest.raises(ValueError, match="pass generators"):
        joined(given, mask)
    assert joined.draws and not joined.eval().draws
    assert not joined(given, mask).any()
    assert not joined(given, mask, torch.Generator()).any(), "a generator that is at hand makes no noise"
    always = Aggregation(WIDTH, BLOCKS, AdapterOptions(noise="always")).eval()
    assert always.draws and not hasattr(Aggregation(WIDTH, BLOCKS, AdapterOptions(noise="off")), "rho")


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_pooled_text_is_of_real_tokens(tmp_path: Path, encoder: LLMEncoder, pooling: str) -> None:
    adapter = trained(UNetBackbone(tiny_sdxl(tmp_path), "sdxl"), encoder, pooling=pooling)
    text = encoder.encode(PROMPTS)
    joined, lengths = adapter.aggregation(text.states, text.mask), encoder.count_tokens(PROMPTS)
    assert len(set(lengths)) == 3
    for row, length, pooled in zip(joined, lengths, adapter(text).pooled_prompt_embeds, strict=True):
        state = row[length - 1] if pooling == "last" else row[:length].mean(0)
        assert torch.allclose(pooled, adapter.pooled(state), atol=1e-5)


def test_states_in_half_precision_are_joined_in_full() -> None:
    joined = Aggregation(WIDTH, BLOCKS, AdapterOptions(noise="off"))
    given, mask = states()
    with torch.autocast("cpu", torch.bfloat16):
        text = joined(given.bfloat16(), mask)
    assert text.dtype == torch.float32
    assert torch.equal(text, joined(given.bfloat16().float(), mask))


def test_a_unet_in_half_precision_takes_the_adapter(sd: UNetBackbone, encoder: LLMEncoder) -> None:
    adapter, text = trained(sd, encoder), encoder.encode(PROMPTS)
    noise = torch.randn(3, 4, 8, 8)
    with torch.no_grad(), adapter.installed(sd.unet):
        exact = sd.unet(noise, 500, encoder_hidden_states=adapter(text).prompt_embeds).sample
    with torch.autocast("cpu", torch.bfloat16), adapter.installed(sd.unet):
        mixed = sd.unet(noise, 500, encoder_hidden_states=adapter(text).prompt_embeds).sample
    mixed.float().square().mean().backward()
    assert all(
        p.grad is not None and p.grad.dtype == torch.float32 for n, p in adapter.named_parameters() if "rho" not in n
    )
    sd.unet.to(torch.bfloat16)
    with torch.no_grad(), adapter.installed(sd.unet):
        half = sd.unet(noise.bfloat16(), 500, encoder_hidden_states=adapter(text).prompt_embeds).sample
    assert half.dtype == torch.bfloat16
    assert close(mixed.float(), exact, 0.05) and close(half.float(), exact, 0.05)


def test_unpacking_gives_back_what_was_packed() -> None:
    text, context = torch.randn(2, 5, 16), torch.randn(2, 5, 3)
    seen = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    packed = unpack(pack(text, context, torch.ones(2, 5), seen), 16)
    assert torch.equal(packed.text, text) and torch.equal(packed.context, context)
    assert not packed.text_bias.any()
    assert torch.equal(packed.context_bias[:, 0] == 0, seen.bool()) and packed.context_bias.min() < -9000


SD15_UNET = {"cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64}


@pytest.mark.parametrize(
    ("unet", "layers", "millions"),
    [(SD15_UNET, 16, (102.2, 12.4, 12.4, 3.15)), (SDXL_UNET, 70, (681.6, 102.4, 102.5, 8.39))],
    ids=["sd15", "sdxl"],
)
def test_parameters_at_real_size(unet: dict, layers: int, millions: tuple) -> None:
    with torch.device("meta"):
        model = UNet2DConditionModel(**unet)
        adapter = LLMDiffAdapter(model, Text(torch.empty(1, 77, unet["cross_attention_dim"])), 4096, 32)
    parts = [("to_k", "to_v"), ("to_q",), ("to_out",), ("phi.weight",)]
    counted = [sum(p.numel() for n, p in adapter.named_parameters() if any(part in n for part in own)) for own in parts]
    assert len(adapter.layers) == layers
    assert [count / 1e6 for count in counted] == pytest.approx(millions, rel=6e-3)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"initial": "bos"}, "adapter.initial is 'bos'; choose one of embed, zero"),
        ({"noise": "sometimes"}, "adapter.noise"),
        ({"normalisation": "l2"}, "adapter.normalisation"),
        ({"bottleneck": 0}, "adapter.bottleneck is 0"),
        ({"bottleneck": 8, "key_value": "phi"}, "does not use it"),
    ],
)
def test_options_are_checked(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdapterOptions(**wrong)


def test_a_text_without_the_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing of the prompt would be left"):
        Aggregation(WIDTH, 0, AdapterOptions(initial="zero"))
