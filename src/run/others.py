"""Ranges of arguments of constructors that are not ours, which say nothing of them in their annotations."""

from typing import Annotated, Any, Literal

from annotated_types import Ge, Interval, MinLen

from src.data.ranges import BelowOne, Count, Number, Positive, Weight

Steps = Annotated[int, Ge(-1)]
"""A number of steps or epochs; -1 is no end."""
PRECISIONS = Literal["32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true", "64-true", "bf16", 16, 32, 64]
INTERVAL = Count | Annotated[float, Interval(gt=0, le=1)] | None

RANGES: dict[str, dict[str, Any]] = {
    "lightning.Trainer": {
        "accelerator": Literal["cpu", "gpu", "cuda", "mps", "auto"],
        "devices": Literal["auto", -1] | Count | Annotated[list[Number], MinLen(1)] | str,
        "num_nodes": Count,
        "precision": PRECISIONS | None,
        "max_steps": Steps,
        "max_epochs": Steps | None,
        "min_steps": Number | None,
        "min_epochs": Number | None,
        "val_check_interval": INTERVAL,
        "limit_train_batches": Number | Annotated[float, Interval(ge=0, le=1)] | None,
        "limit_val_batches": Number | Annotated[float, Interval(ge=0, le=1)] | None,
        "check_val_every_n_epoch": Count | None,
        "num_sanity_val_steps": Steps | None,
        "log_every_n_steps": Count | None,
        "accumulate_grad_batches": Count,
        "gradient_clip_val": Weight | None,
    },
    "torch.optim.AdamW": {
        "lr": Weight,
        "weight_decay": Weight,
        "betas": tuple[BelowOne, BelowOne],
        "eps": Positive,
    },
    "lightning.pytorch.callbacks.ModelCheckpoint": {
        "every_n_train_steps": Count | None,
        "every_n_epochs": Count | None,
        "save_top_k": Annotated[int, Ge(-1)],
    },
    "lightning.pytorch.loggers.CSVLogger": {"flush_logs_every_n_steps": Count},
    "src.callbacks.progress.StepProgress": {"refresh_rate": Count},
}
"""By ``_target_``."""
