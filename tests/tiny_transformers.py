"""Pipelines of transformers with cross-attention, as in ``tiny.py``: real classes, small, with random weights."""

import json
import string
from pathlib import Path

import torch
from diffusers import (
    AutoencoderDC,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    HunyuanDiT2DModel,
    HunyuanDiTPipeline,
    SanaPipeline,
    SanaTransformer2DModel,
)
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from src.data.world.tokenizers import words, write_llm_tokenizer, write_t5_tokenizer
from tests.tiny import tiny_pixart


def gemma_tokenizer(folder: Path) -> GemmaTokenizer:
    """Gemma's class with the words of the world: a space belongs to the word behind it, and text is not split."""
    write_llm_tokenizer(folder, 1_000_000)
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    vocabulary = {**model["vocab"], "<unk>": len(model["vocab"])}
    merges = [tuple(pair) for pair in model["merges"]]
    return GemmaTokenizer(vocab=vocabulary, merges=merges, add_bos_token=True, **named)


def tiny_sana(folder: Path, **transformer: object) -> SanaPipeline:
    """Latents are 16 times smaller than the image."""
    torch.manual_seed(0)
    words = gemma_tokenizer(folder / "words")
    config = Gemma2Config(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        pad_token_id=words.pad_token_id,
    )
    denoiser = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=16,
        sample_size=4,
        **transformer,
    )
    for block in denoiser.transformer_blocks:
        torch.nn.init.normal_(block.attn2.to_out[0].weight, std=0.5)
    return SanaPipeline(
        tokenizer=words,
        text_encoder=Gemma2Model(config),
        vae=AutoencoderDC(
            latent_channels=4,
            attention_head_dim=4,
            encoder_block_out_channels=(4, 4, 8, 8, 8),
            decoder_block_out_channels=(4, 4, 8, 8, 8),
            encoder_layers_per_block=(1,) * 5,
            decoder_layers_per_block=(1,) * 5,
            encoder_qkv_multiscales=((),) * 5,
            decoder_qkv_multiscales=((),) * 5,
            scaling_factor=0.41407,
        ),
        transformer=denoiser,
        scheduler=DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    )


def bert_tokenizer() -> BertTokenizer:
    """BERT's class with the words of the world, and other words in characters."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    characters = [mark + one for mark in ("", "##") for one in sorted(string.printable.strip().lower())]
    return BertTokenizer(vocab={token: at for at, token in enumerate(dict.fromkeys([*special, *words(), *characters]))})


def tiny_hunyuan_dit(folder: Path, **transformer: object) -> HunyuanDiTPipeline:
    """T5 is wider than the bilingual CLIP, and the last block has a skip connection from the first."""
    torch.manual_seed(0)
    bert = bert_tokenizer()
    write_t5_tokenizer(folder / "t5", 256)
    pieces = T5TokenizerFast.from_pretrained(folder / "t5")
    config = T5Config(vocab_size=len(pieces), d_model=24, d_kv=8, d_ff=16, num_layers=1, num_heads=2, dropout_rate=0.0)
    clip = BertConfig(
        vocab_size=len(bert),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    denoiser = HunyuanDiT2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        patch_size=2,
        sample_size=8,
        hidden_size=16,
        num_layers=4,
        cross_attention_dim=16,
        cross_attention_dim_t5=24,
        pooled_projection_dim=8,
        **{"use_style_cond_and_image_meta_size": False, **transformer},
    )
    return HunyuanDiTPipeline(
        vae=tiny_pixart(folder / "pixart").vae,
        text_encoder=BertModel(clip, add_pooling_layer=False),
        tokenizer=bert,
        transformer=denoiser,
        scheduler=DDPMScheduler(
            beta_start=0.00085, beta_end=0.018, beta_schedule="scaled_linear", prediction_type="v_prediction"
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        text_encoder_2=T5EncoderModel(config),
        tokenizer_2=pieces,
    )
