"""Words of other programs for keys of ours: lr, steps, batch, gpu."""

from collections.abc import Callable

COMMON = {
    "train": {
        "method.optimizer.lr": ("lr", "learning_rate", "rate"),
        "trainer.max_steps": ("steps", "num_steps", "max_train_steps", "iterations", "iters"),
        "data.batch_size": ("batch", "batch_size", "train_batch_size", "bs"),
        "data.resolution": ("size", "resolution", "image_size", "width", "height"),
        "data.instance_dir": ("images", "photos", "folder", "dir", "data_dir", "instance_data_dir", "train_data_dir"),
        "trainer.devices": ("gpus", "num_gpus", "devices"),
        "trainer.precision": ("precision", "mixed_precision"),
        "trainer.accumulate_grad_batches": ("accumulate", "gradient_accumulation_steps"),
        "class_noun": ("class", "noun", "class_prompt", "class_name", "category"),
        "concept": ("token", "subject", "placeholder_token", "instance_prompt", "modifier_token"),
        "paths.root": ("out", "output", "output_dir", "outdir", "save_dir"),
    },
    "draw": {
        "method.sampling.num_inference_steps": ("steps", "num_steps", "num_inference_steps", "sampling_steps"),
        "method.sampling.guidance_scale": ("guidance", "guidance_scale", "cfg", "cfg_scale", "scale"),
        "method.sampling.negative_prompt": ("negative", "negative_prompt"),
        "method.sampling.resolution": ("size", "resolution", "image_size", "width", "height"),
        "method.batch_size": ("batch", "batch_size", "bs"),
        "num_images": ("n", "num", "images", "count", "num_samples", "n_samples", "num_images_per_prompt"),
        "output": ("out", "output_dir", "outdir", "save_dir", "folder"),
    },
    "": {
        "backbone.path": ("checkpoint", "ckpt", "pretrained_model_name_or_path", "model_id", "model_path"),
        "backbone": ("model", "base", "base_model"),
    },
}
"""Key of ours to the words that other programs have for it; below ``""`` those of all entry points."""
INSTEAD = {
    **dict.fromkeys(("gpu", "cuda", "device", "accelerator"), {"train": "trainer=gpu", "draw": "method.device=cuda"}),
    **dict.fromkeys(("epochs", "num_epochs", "max_epochs", "num_train_epochs"), {"train": "trainer.max_steps=STEPS"}),
    **dict.fromkeys(("fp16", "bf16"), {"train": "trainer.precision=bf16-mixed"}),
}
"""What is typed in the place of other programs' words whose values are others, too."""


def of_other_programs(key: str, told: str, task: str, takes: Callable[[str], bool]) -> str | None:
    """What to type for a word of other programs, such as ``lr``; None for other words.

    Args:
        key: As typed, without plus signs.
        told: Its value, with the equals sign.
        task: The task of the configuration, such as ``train``.
        takes: Whether the configuration takes a key.
    """
    role = "train" if task == "train" else "draw"
    if advice := INSTEAD.get(key, {}).get(role):
        return advice
    known = COMMON[role] | COMMON[""]
    return next((f"{ours}{told}" for ours, theirs in known.items() if key in theirs and takes(ours)), None)
