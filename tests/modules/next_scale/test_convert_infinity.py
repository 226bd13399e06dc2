"""Published files in all their wrappings, and what is said of those that do not fit."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import T5Config, T5EncoderModel

from src.data.world.tokenizers import write_t5_tokenizer
from src.modules.next_scale.infinity.convert import load_pipeline, load_tokenizer, load_transformer
from tests.modules.next_scale.golden import golden
from tests.modules.next_scale.tiny_infinity import golden_tokenizer, golden_transformer


@pytest.fixture(scope="module")
def transformer() -> dict[str, Tensor]:
    return golden("infinity_A", "transformer")


@pytest.fixture(scope="module")
def vae() -> dict[str, Tensor]:
    return golden("infinity_A", "vae")


def saved(folder: Path, content: object) -> Path:
    torch.save(content, folder / "model.pth")
    return folder / "model.pth"


def same(ours: torch.nn.Module, theirs: torch.nn.Module) -> bool:
    pairs = zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True)
    return all(a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in pairs)


def plain(state: dict[str, Tensor]) -> dict[str, object]:
    return dict(state)


def of_a_trainer(state: dict[str, Tensor]) -> dict[str, object]:
    averaged = {name: tensor + 1 for name, tensor in state.items()}
    return {"epoch": 3, "trainer": {"gpt_fsdp": state, "gpt_ema_fsdp": averaged}}


def of_one_chunk(state: dict[str, Tensor]) -> dict[str, object]:
    return {
        re.sub(r"^block_chunks\.(\d)\.module\.(\d)\.", lambda m: f"blocks.{2 * int(m[1]) + int(m[2])}.", name): tensor
        for name, tensor in state.items()
    }


def with_old_buffers(state: dict[str, Tensor]) -> dict[str, object]:
    heads = {name: t.transpose(1, 2) for name, t in state.items() if name.endswith("scale_mul_1H11")}
    return {**state, **heads, "lvl_1L": torch.zeros(1, 5), "attn_bias_for_masking": torch.zeros(1, 1, 5, 5)}


@pytest.mark.parametrize("wrapped", [plain, of_a_trainer, of_one_chunk, with_old_buffers])
def test_a_transformer_in_every_wrapping(tmp_path: Path, transformer: dict[str, Tensor], wrapped) -> None:
    assert same(load_transformer(saved(tmp_path, wrapped(transformer)), 16), golden_transformer())


def test_averaged_weights_on_request(tmp_path: Path, transformer: dict[str, Tensor]) -> None:
    loaded = load_transformer(saved(tmp_path, of_a_trainer(transformer)), 16, ema=True)
    assert torch.equal(loaded.start, golden_transformer().start + 1)
    plain_only = {"trainer": {"gpt_fsdp": transformer}}
    with pytest.raises(ValueError, match="a trainer's checkpoint without gpt_ema_fsdp; give another, or ema=False"):
        load_transformer(saved(tmp_path, plain_only), 16, ema=True)


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_a_sharded_transformer(tmp_path: Path, transformer: dict[str, Tensor], ending: str) -> None:
    names = sorted(transformer)
    shards = {f"part-{n}.{ending}": {name: transformer[name].contiguous() for name in names[n::2]} for n in (0, 1)}
    for shard, tensors in shards.items():
        (save_file if ending == "safetensors" else torch.save)(tensors, tmp_path / shard)
    index = {"weight_map": {name: shard for shard, tensors in shards.items() for name in tensors}}
    (tmp_path / "model.index.json").write_text(json.dumps(index), encoding="utf-8")
    assert same(load_transformer(tmp_path, 16), golden_transformer())
    (tmp_path / f"part-1.{ending}").unlink()
    with pytest.raises(ValueError, match="part-1"):
        load_transformer(tmp_path, 16)


def unwrapped(name: str) -> str:
    return re.sub(r"(\.(conv|norm))+\.(weight|bias)$", r".\3", name)


@pytest.mark.parametrize(
    "spelled",
    [lambda name: name, unwrapped, lambda name: name.replace("sample.conv.conv.", "sample.conv.")],
)
def test_an_image_tokenizer_in_every_spelling(tmp_path: Path, vae: dict[str, Tensor], spelled) -> None:
    content = {"vae": {spelled(name): tensor for name, tensor in vae.items()}, "ema": {}}
    assert same(load_tokenizer(saved(tmp_path, content)), golden_tokenizer())


def test_a_whole_pipeline_from_published_files_and_precision(
    tmp_path: Path, transformer: dict[str, Tensor], vae: dict[str, Tensor]
) -> None:
    (tmp_path / "vae").mkdir()
    files = str(saved(tmp_path, transformer)), str(saved(tmp_path / "vae", {"vae": vae}))
    write_t5_tokenizer(tmp_path / "t5", 32)
    config = T5Config(vocab_size=300, d_model=256, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    T5EncoderModel(config).save_pretrained(tmp_path / "t5")
    pipeline = load_pipeline(*files, str(tmp_path / "t5"), sampling={"temperature": 1.0})
    assert pipeline.sampling["temperature"] == 1.0
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.transformer.dtype == pipeline.text_encoder.dtype == torch.bfloat16
    assert torch.equal(pipeline.transformer.head.weight, golden_transformer().head.weight)
    assert pipeline("a dog", height=256, width=256, guidance_scale=1.0).images[0].size == (256, 256)
    with pytest.raises(ValueError, match=r"backbone\.dtype is 'int8'"):
        load_pipeline(*files, str(tmp_path / "t5"), dtype="int8")


def test_missing_tensors_are_named(tmp_path: Path, transformer: dict[str, Tensor], vae: dict[str, Tensor]) -> None:
    short = {name: tensor for name, tensor in transformer.items() if "1.module.0.ffn.fc1" not in name}
    with pytest.raises(ValueError, match=r"lacks 2 of \d+ tensors: blocks\.2\.fc1\.bias, blocks\.2\.fc1\.weight"):
        load_transformer(saved(tmp_path, short), 16)
    with pytest.raises(ValueError, match=r"it lacks start"):
        load_transformer(saved(tmp_path, {n: t for n, t in transformer.items() if n != "pos_start"}), 16)
    with pytest.raises(ValueError, match=r"it lacks encoder\.conv_in\.weight"):
        load_tokenizer(saved(tmp_path, transformer))
    with pytest.raises(ValueError, match="beside what is needed, 1 of .* decoder.extra"):
        load_tokenizer(saved(tmp_path, {"vae": {**vae, "decoder.extra": torch.zeros(1)}}))


@pytest.mark.parametrize("latent_channels", [8, 32])
def test_the_wrong_image_tokenizer_is_refused(
    tmp_path: Path, transformer: dict[str, Tensor], latent_channels: int
) -> None:
    with pytest.raises(ValueError, match=f"tokens of 16 bits, but the image tokenizer has {latent_channels} in a cell"):
        load_transformer(saved(tmp_path, transformer), latent_channels)


def test_an_image_tokenizer_with_a_quarter_of_the_bits_means_patches(
    tmp_path: Path, transformer: dict[str, Tensor]
) -> None:
    path = saved(tmp_path, transformer)
    assert load_transformer(path, 4).config.patchify
    assert not load_transformer(path, 16).config.patchify


def test_damaged_and_absent_files_are_said(tmp_path: Path, transformer: dict[str, Tensor]) -> None:
    path = saved(tmp_path, transformer)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(ValueError, match="damaged, cut short"):
        load_transformer(path, 16)
    with pytest.raises(ValueError, match="there is no"):
        load_transformer(tmp_path / "other.pth", 16)
    with pytest.raises(ValueError, match="holds a list; give a file of tensors by their names"):
        load_tokenizer(saved(tmp_path, [torch.zeros(1)]))
    with pytest.raises(ValueError, match=r"no \*\.index\.json"):
        load_transformer(tmp_path, 16)
    with pytest.raises(ValueError, match="OWNER/REPOSITORY/NAME"):
        load_pipeline("nothing.pth", "nothing.pth", "t5")


class Code:
    """Runs when it is unpickled."""

    def __reduce__(self):
        return (print, ("unpickled",))


def test_code_in_a_file_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="no file of weights"):
        load_tokenizer(saved(tmp_path, {"vae": Code()}))
    assert "unpickled" not in capsys.readouterr().out
