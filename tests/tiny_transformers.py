"""Pipelines of transformers with cross-attention, as in ``tiny.py``: real classes, small, with random weights."""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel
from transformers import Gemma2Config, Gemma2Model, GemmaTokenizer

from src.data.world.tokenizers import write_llm_tokenizer


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
