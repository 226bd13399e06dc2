"""Banks and adapters of the version before this one: the key that they were kept under, so that none is learnt again.

To be deleted with the old spellings in ``src.run.spelling``.
"""

from collections.abc import Mapping
from typing import Any

from src.run.spelling import TRAINING
from src.run.types import options

TARGETS = {
    "src.modules.latexblend.learner.LaTexBlend": "src.modules.latexblend.LaTexBlend",
    "src.modules.llmdiff.learner.LLMDiff": "src.modules.llmdiff.LLMDiff",
    "src.modules.backbones.unet.UNetBackbone.from_pretrained": "src.modules.backbone.DiffusionBackbone.from_pretrained",
    "src.modules.llmdiff.encoder.LLMEncoder": "src.modules.llm_encoder.LLMEncoder",
    "src.modules.llmdiff.language_model.LanguageModel.from_pretrained": (
        "src.modules.llm.language_model.LanguageModel.from_pretrained"
    ),
    "src.modules.llmdiff.options.EncodingOptions": "src.modules.llm.options.EncodingOptions",
    "src.modules.llmdiff.options.AdapterOptions": "src.modules.llm.options.AdapterOptions",
    "src.data.subject.ConceptData": "src.data.concept.ConceptData",
    "src.data.subject.Zoom": "src.data.concept.Zoom",
}
"""Where classes are now, to where they were: keys named them by their modules."""
METHOD_KEYS = {
    "src.modules.latexblend.learner.LaTexBlend": (
        *("class_noun", "concept", "learning_rate", "modifier_learning_rate", "weight_decay", "initializer", "rank"),
        *("base_flow", "templates", "prior_loss_weight", "snr_gamma", "faithful", "backbone", "seed"),
    ),
    "src.modules.llmdiff.learner.LLMDiff": (
        *("backbone", "encoder", "options", "learning_rate", "scalar_learning_rate", "weight_decay", "schedule"),
        *("num_warmup_steps", "caption_dropout", "snr_gamma", "ema_decay", "gradient_checkpointing", "seed"),
    ),
}
"""What stood side by side below ``method``, by the learner that there is now."""
TRAINER_KEYS = (
    *("_target_", "accelerator", "devices", "precision", "max_steps", "max_epochs", "num_sanity_val_steps"),
    *("gradient_clip_val", "use_distributed_sampler", "enable_model_summary"),
)
"""What ``conf/trainer`` wrote out; of other arguments only those that were changed stood in a key."""
NOT_WRITTEN = ("local_files_only", "safety_checker", "sampling")


def former_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a training as the version before wrote them; those of a training that it did not have stay.

    Args:
        settings: By part, ``method``, ``data``, ``backbone`` and ``trainer``, with all defaults.
    """
    method = settings["method"]
    learner = method.get("learner", {}).get("_target_")
    if learner not in METHOD_KEYS:
        return dict(settings)
    flat = {key: _select(method, TRAINING.get(key, key)) for key in METHOD_KEYS[learner]} | {"_target_": learner}
    if "ema_decay" in flat:
        flat["ema_decay"] = flat["ema_decay"] or 0.0
    defaults = options("lightning.Trainer")
    trainer = {k: v for k, v in settings["trainer"].items() if k in TRAINER_KEYS or v != defaults.get(k, ...)}
    return _renamed({**settings, "method": flat, "trainer": trainer})


def _select(node: Any, path: str) -> Any:
    for name in path.split("."):
        node = node[name]
    return node


def _renamed(node: Any) -> Any:
    if not isinstance(node, dict):
        return TARGETS.get(node, node) if isinstance(node, str) else node
    return {key: _renamed(value) for key, value in node.items() if key not in NOT_WRITTEN}
