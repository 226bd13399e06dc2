"""Real classes at the smallest useful size, with random weights and the world's tokenizer."""

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLQwenImage,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

from src.data.world.tokenizers import write_clip_tokenizer, write_t5_tokenizer

LENGTH = 32


def tokenizer(folder: Path) -> CLIPTokenizer:
    write_clip_tokenizer(folder)
    return CLIPTokenizer.from_pretrained(folder, model_max_length=LENGTH)


def _text_config(words: CLIPTokenizer, width: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=width,
        max_position_embeddings=LENGTH,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
    )


UNET = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "attention_head_dim": 2,
}


SDXL_UNET = {
    "sample_size": 128,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
"""The real one."""


def tiny_sd(folder: Path, prediction_type: str = "epsilon", **unet: int) -> StableDiffusionPipeline:
    torch.manual_seed(0)
    words = tokenizer(folder / "words")
    return StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(_text_config(words, 16)),
        tokenizer=words,
        unet=UNet2DConditionModel(**UNET, cross_attention_dim=16, **unet),
        scheduler=DDIMScheduler(
            beta_schedule="scaled_linear", prediction_type=prediction_type, steps_offset=1, clip_sample=False
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def tiny_sdxl(folder: Path, **options: bool) -> StableDiffusionXLPipeline:
    torch.manual_seed(0)
    words = tokenizer(folder / "words")
    unet = UNet2DConditionModel(
        **UNET,
        cross_attention_dim=16 + 24,
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 24,
    )
    return StableDiffusionXLPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(_text_config(words, 16)),
        text_encoder_2=CLIPTextModelWithProjection(_text_config(words, 24)),
        tokenizer=words,
        tokenizer_2=words,
        unet=unet,
        scheduler=EulerDiscreteScheduler(beta_schedule="scaled_linear", steps_offset=1, timestep_spacing="leading"),
        add_watermarker=False,
        **options,
    )


def tiny_pixart(folder: Path, kind: type[PixArtSigmaPipeline] = PixArtSigmaPipeline) -> PixArtSigmaPipeline:
    torch.manual_seed(0)
    write_t5_tokenizer(folder / "words", LENGTH)
    words = T5TokenizerFast.from_pretrained(folder / "words")
    config = T5Config(vocab_size=len(words), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, dropout_rate=0.0)
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        cross_attention_dim=24,
        sample_size=8,
        caption_channels=16,
        use_additional_conditions=False,
    )
    # At its start a transformer of this kind hardly moves: its output layer is shaken, so that text can be seen.
    torch.nn.init.normal_(transformer.proj_out.weight, std=0.5)
    return kind(
        tokenizer=words,
        text_encoder=T5EncoderModel(config),
        vae=_vae(),
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(beta_schedule="linear"),
    )


def tiny_sd3(folder: Path, t5: bool = True) -> StableDiffusion3Pipeline:
    """Two joint blocks behind two CLIPs and T5; the second block does not go on with the text, as in the real one."""
    torch.manual_seed(0)
    words = tokenizer(folder / "words")
    write_t5_tokenizer(folder / "t5", LENGTH)
    pieces = T5TokenizerFast.from_pretrained(folder / "t5")
    config = T5Config(vocab_size=len(pieces), d_model=48, d_kv=8, d_ff=16, num_layers=1, num_heads=2, dropout_rate=0.0)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=48,
        caption_projection_dim=16,
        pooled_projection_dim=16 + 24,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
        dual_attention_layers=(0,),
    )
    for name, weight in transformer.named_parameters():
        if name.endswith("weight") and weight.ndim == 2:
            torch.nn.init.normal_(weight, std=0.3)
    vae = _vae()
    vae.register_to_config(shift_factor=0.1, scaling_factor=0.5)
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=CLIPTextModelWithProjection(_text_config(words, 16)),
        tokenizer=words,
        text_encoder_2=CLIPTextModelWithProjection(_text_config(words, 24)),
        tokenizer_2=words,
        text_encoder_3=T5EncoderModel(config) if t5 else None,
        tokenizer_3=pieces if t5 else None,
    )


def tiny_flux(folder: Path, guidance_embeds: bool = True) -> FluxPipeline:
    """One double block and two single ones, behind T5 and CLIP."""
    torch.manual_seed(0)
    words = tokenizer(folder / "words")
    write_t5_tokenizer(folder / "t5", LENGTH)
    pieces = T5TokenizerFast.from_pretrained(folder / "t5")
    config = T5Config(vocab_size=len(pieces), d_model=32, d_kv=8, d_ff=16, num_layers=1, num_heads=2, dropout_rate=0.0)
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(4, 4, 8),
    )
    for name, weight in transformer.named_parameters():
        if name.endswith("weight") and weight.ndim == 2:
            torch.nn.init.normal_(weight, std=0.3)
    vae = _vae()
    vae.register_to_config(shift_factor=0.1, scaling_factor=0.5)
    return FluxPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae,
        text_encoder=CLIPTextModel(_text_config(words, 16)),
        tokenizer=words,
        text_encoder_2=T5EncoderModel(config),
        tokenizer_2=pieces,
    )


def tiny_qwen_image() -> QwenImagePipeline:
    """Two double blocks behind a language model that reads letters: as with the real tokenizer, no token joins a prompt
    and the template around it."""
    torch.manual_seed(0)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    letters = {letter: at for at, letter in enumerate(sorted(bytes_to_unicode().values()))}
    words = Qwen2Tokenizer(vocab=letters | {one: len(letters) + at for at, one in enumerate(special)}, merges=[])
    words.add_special_tokens({"additional_special_tokens": special[1:]})
    size = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10_000.0}
    config = Qwen2_5_VLConfig(
        text_config={**size, "num_key_value_heads": 1, "vocab_size": len(words), "rope_parameters": rope},
        vision_config={"hidden_size": 16, "depth": 1, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": 32},
    )
    transformer = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(4, 6, 6),
    )
    for name, weight in transformer.named_parameters():
        if name.endswith("weight") and weight.ndim == 2:
            torch.nn.init.normal_(weight, std=0.3)
    vae = AutoencoderKLQwenImage(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.1] * 4, latents_std=[1.5] * 4
    )
    pipeline = QwenImagePipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae,
        text_encoder=Qwen2_5_VLForConditionalGeneration(config),
        tokenizer=words,
    )
    pipeline.default_sample_size = 8
    start = pipeline.prompt_template_encode.split("{}")[0]
    pipeline.prompt_template_encode_start_idx = len(words(start).input_ids)
    return pipeline
