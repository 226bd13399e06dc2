"""Names on the command line: arguments of parts, and what methods and keys were called one version before."""

import re
from collections.abc import Mapping, Sequence

from src.run.types import PARTS

GIVEN_WHOLE = ("sampling", "rates", "space", "model_args", "vision_cfg", "text_cfg")
"""Arguments that are mappings: all their keys stand in the configuration, so that Hydra itself refuses others."""
ARGUMENT = re.compile(rf"(?:{'|'.join(PARTS)})\.[\w.]+(?=[=:])")

METHODS = {"blending": "latexblend", "llmdiff_training": "llmdiff"}
"""Old names of methods."""
TRAINING = {
    "learning_rate": "optimizer.lr",
    "weight_decay": "optimizer.weight_decay",
    "modifier_learning_rate": "rates.modifier",
    "scalar_learning_rate": "rates.scalars",
    "text_learning_rate": "rates.text_encoder",
    **{name: f"learner.subject.{name}" for name in ("class_noun", "concept", "references")},
    **{name: f"learner.objective.{name}" for name in ("base_flow", "templates", "prior_loss_weight", "faithful")},
    **{
        name: f"learner.{name}"
        for name in (
            *("backbone", "cache_dir", "initializer", "rank", "snr_gamma", "sampling", "seed"),
            *("encoder", "options", "caption_dropout", "gradient_checkpointing", "encode_ahead"),
        )
    },
    "export_path": "learner.exports.path",
}
PRETRAINING = {
    **{name: f"learner.size.{name}" for name in ("depth", "width", "base_channels", "layers_per_block")},
    **{name: f"learner.teaching.{name}" for name in ("momentum", "final_momentum")},
    "min_crop": "learner.views.min_crop",
    "view_size": "learner.views.size",
    "contrast_weight": "learner.contrast.weight",
    **{
        name: f"learner.{name}"
        for name in (
            *("export_dir", "init_from", "code_path", "block_out_channels", "text_width", "text_layers"),
            *("teacher_steps", "teacher_weight", "commitment_weight", "early_share", "phrases_alone", "flip_strength"),
            *("full_caption_share", "decoder_noise", "reweight_by_scale", "model_args"),
        )
    },
}
"""What the pretrainings of the world add."""
DRAWING = {
    name: f"sampling.{name}" for name in ("num_inference_steps", "guidance_scale", "negative_prompt", "resolution")
} | {"bind": "rectification.bind"}


def respelling(role: str, arguments: Sequence[str]) -> Mapping[str, str]:
    """Old keys below ``method`` to today's.

    Args:
        role: ``train``, or ``draw`` of what draws images.
        arguments: The whole command line, which says what is trained.
    """
    if role == "draw":
        return DRAWING
    is_llmdiff = any(re.match(r"\+?(method|experiment)=llmdiff", argument) for argument in arguments)
    return TRAINING | PRETRAINING | ({"export_path": "learner.export_path"} if is_llmdiff else {})
