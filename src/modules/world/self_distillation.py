"""Pretrain the world's DINO encoder without labels or text: self-distillation, and a contrastive loss on clips."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from lightly.loss import DINOLoss, NTXentLoss
from lightly.models.modules.heads import DINOProjectionHead
from lightly.models.utils import update_momentum
from lightly.utils.scheduler import cosine_schedule
from safetensors.torch import save_file
from timm.models import load_checkpoint
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from src.data.ranges import Count, Positive, Seed, Share, Share1, Side, Weight
from src.data.world.families import MEMBERS, found_among_all, found_in_family, member_cosines
from src.modules.training.learner import Learner, TrainingRecord


def save_timm_folder(
    folder: str | Path, model: nn.Module, architecture: str, model_args: dict[str, Any], image_size: int = 64
) -> None:
    """Write ``config.json`` and half-precision ``model.safetensors``.

    Args:
        folder: Folder to write to; it is created if it does not exist.
        model: The model that ``timm.create_model(architecture, **model_args)`` built.
        architecture: Name of the timm model.
        model_args: Arguments of the model's constructor, plain values.
        image_size: Side of the images that it was trained on, in [-1, 1].
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pretrained_cfg = {
        "input_size": [3, image_size, image_size],
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "num_classes": model.num_classes,
        # timm would otherwise look for the names that the architecture's own weights use.
        "first_conv": None,
        "classifier": None,
    }
    config = {
        "architecture": architecture,
        "num_classes": model.num_classes,
        "num_features": model.num_features,
        "model_args": {name: value for name, value in model_args.items() if name != "num_classes"},
        "pretrained_cfg": pretrained_cfg,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    state = {name: _half(tensor) for name, tensor in model.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def _half(tensor: Tensor) -> Tensor:
    return (tensor.detach().half() if tensor.is_floating_point() else tensor.detach()).contiguous()


@dataclass(frozen=True)
class Views:
    """How views are cut from an image.

    Attributes:
        min_crop: Smallest side of a crop as a share of the image.
        size: Side of the views in pixels; smaller than the image saves time and undoes the enlargement by the crop.
    """

    min_crop: Share1 = 0.65
    size: Side = 64


@dataclass(frozen=True)
class Teaching:
    """How the teacher follows the student, and how sharp its answers are.

    Attributes:
        momentum: Share of its weights that the teacher keeps in the first step; it rises along a cosine.
        final_momentum: Share that it keeps in the last step.
        temperature: Constant temperature of its answers.
    """

    momentum: Share = 0.95
    final_momentum: Share = 0.998
    temperature: Positive = 0.04


@dataclass(frozen=True)
class Contrast:
    """SimCLR's loss beside DINO's.

    Attributes:
        weight: Its weight, where DINO's loss has weight 1; 0 for DINO alone.
        temperature: Its temperature; the negatives are the other views on the same process.
    """

    weight: Weight = 1.0
    temperature: Positive = 0.1


class SelfDistillation(Learner):
    """Trains a student to predict the answer of a teacher, its moving average, to another view (DINO, 2021).

    The data module chooses which two views belong together: two crops of one image, or two frames of one clip, in which
    only the individual stays the same. Colours identify individuals in this world, so views differ in crop, direction
    and lighting, but not in hue.

    DINO's loss alone sorts a batch by main colours and ignores shapes and markings. ``contrast`` adds SimCLR's
    loss (2020), by which each view must tell its partner from all other views of the batch. It acts on the backbone's
    features without a projection head, because the features should keep nothing that differs between two frames.

    The rest of a batch decides what the features must tell apart. Among individuals drawn at random, a pair of colours
    is enough; in a batch of families, whose clips share all but one thing, each of these things counts.

    Args:
        export_dir: Folder that receives the teacher (``local-dir:`` of ``timm.create_model``).
        architecture: Name of a timm model.
        model_args: Arguments of the model's constructor. With ``num_classes`` the features are those of a linear layer
            after the pooling, of that width: pooled features are never negative, so what two individuals share keeps
            them alike; a linear layer can leave it out.
        head_dim: Hidden width of the projection heads.
        prototypes: Number of outputs of the projection heads.
        views: How views are cut.
        teaching: How the teacher follows the student.
        contrast: SimCLR's loss beside DINO's.
        init_from: Folder of an earlier encoder of the same architecture to start from; None for random weights.
        seed: Seed of the initial weights and the crops.
    """

    def __init__(
        self,
        export_dir: str,
        architecture: str,
        model_args: dict[str, Any],
        head_dim: Count = 512,
        prototypes: Count = 512,
        views: Views | None = None,
        teaching: Teaching | None = None,
        contrast: Contrast | None = None,
        init_from: str | None = None,
        seed: Seed = 0,
    ) -> None:
        super().__init__()
        self.export_dir, self.architecture, self.model_args, self.seed = export_dir, architecture, model_args, seed
        self.views, self.teaching, contrast = views or Views(), teaching or Teaching(), contrast or Contrast()
        torch.manual_seed(seed)
        self.student = _Encoder(architecture, model_args, head_dim, prototypes)
        if init_from:
            # The last linear layer may be new.
            load_checkpoint(self.student.backbone, str(Path(init_from) / "model.safetensors"), strict=False)
        self.teacher = _Encoder(architecture, model_args, head_dim, prototypes).requires_grad_(False)
        self.teacher.load_state_dict(self.student.state_dict())
        self.loss = DINOLoss(prototypes, teacher_temp=self.teaching.temperature)
        self.contrast, self.contrast_weight = NTXentLoss(contrast.temperature), contrast.weight

    def prepare(self, data: Any, device: torch.device, rank: int = 0, world_size: int = 1, num_steps: int = 0) -> None:
        """Note the number of steps, over which the momentum rises."""
        self.num_steps = num_steps

    def losses(self, batch: dict[str, Any], generators: list[Generator]) -> dict[str, Tensor]:
        """Compute DINO's cross-entropy between teacher and student on different views, and SimCLR's loss."""
        views = self._cut(batch, generators[0])
        with torch.no_grad():
            teacher_out = self.teacher(views).float().chunk(2)
        features = self.student.backbone(views)
        student_out = self.student.head(features).float().chunk(2)
        with torch.autocast(self.device.type, enabled=False):
            distillation = self.loss(list(teacher_out), list(student_out))
            contrast = self.contrast(*features.float().chunk(2))
        loss = distillation + self.contrast_weight * contrast
        rising = (self.teaching.momentum, self.teaching.final_momentum)
        self.momentum = cosine_schedule(int(batch["step"]), self.num_steps, *rising)
        momentum = torch.tensor(self.momentum, device=loss.device)
        return {"loss": loss, "momentum": momentum, "distillation": distillation, "contrast": contrast}

    def _cut(self, batch: dict[str, Any], generator: Generator) -> Tensor:
        """Cut views of all first frames, then of all second ones, ``(2 B, 3, size, size)``."""
        crops = (self.views.min_crop, self.views.size)
        views = torch.cat([random_view(batch[name], *crops, generator) for name in ("first", "second")])
        return views.contiguous(memory_format=torch.channels_last)

    def groups(self) -> list[dict[str, Any]]:
        """Return all of the student: its head's fixed norms get no gradient, but earlier checkpoints hold them."""
        return [{"name": "student", "params": list(self.student.parameters())}]

    def after_step(self) -> None:
        """Move the teacher's weights towards the student's."""
        update_momentum(self.student, self.teacher, self.momentum)

    def validate(self, batch: Tensor, generators: list[Generator]) -> dict[str, Tensor]:
        """Compare photos of held-out individuals with one of each member of their families, and of one another.

        Args:
            batch: Photos as ``families.member_cosines`` takes their features.
            generators: Not used: nothing is drawn.

        Returns:
            By member the cosines; whether the individual is nearest among the first of all families
            (``reidentification``), and among the members of its own (``hard_reidentification``).
        """
        features = self.teacher.backbone(batch.flatten(0, 1)).float().view(*batch.shape[:2], -1)
        cosines = member_cosines(features)
        return {
            **{f"cosine_{name}": cosines[..., at] for at, name in enumerate(MEMBERS)},
            "reidentification": found_among_all(features).float(),
            "hard_reidentification": found_in_family(cosines).float(),
        }

    def export(self, record: TrainingRecord) -> dict[str, str]:
        """Write configuration and half-precision weights of the teacher's backbone in timm's layout."""
        save_timm_folder(self.export_dir, self.teacher.backbone, self.architecture, self.model_args)
        return {"self-supervised encoder": self.export_dir}


class _Encoder(nn.Module):
    """A backbone and its projection head."""

    def __init__(self, architecture: str, model_args: dict[str, Any], head_dim: int, prototypes: int) -> None:
        super().__init__()
        backbone = timm.create_model(architecture, **{"num_classes": 0, **model_args})
        self.backbone = backbone.to(memory_format=torch.channels_last)
        self.head = DINOProjectionHead(backbone.num_classes or backbone.num_features, head_dim, 128, prototypes)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Map images ``(B, 3, H, W)`` to prototype scores ``(B, prototypes)``."""
        return self.head(self.backbone(pixel_values))


def random_view(pixel_values: Tensor, min_crop: float, size: int, generator: Generator) -> Tensor:
    """Crop each image at random, mirror it or not, and change its contrast and brightness a little.

    Args:
        pixel_values: Images ``(B, 3, H, W)`` in [-1, 1].
        min_crop: Smallest side of a crop as a share of the image.
        size: Side of the views in pixels.
        generator: Source of all draws.

    Returns:
        Views ``(B, 3, size, size)`` in [-1, 1].
    """
    number = len(pixel_values)
    draws = torch.rand(number, 6, generator=generator).to(pixel_values.device)
    side = min_crop + (1 - min_crop) * draws[:, 0]
    shift = (1 - side)[:, None] * (2 * draws[:, 1:3] - 1)
    flip = torch.where(draws[:, 3] < 0.5, -1.0, 1.0)
    theta = torch.zeros(number, 2, 3, device=pixel_values.device)  # affine maps, (B, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = side * flip, side, shift
    grid = F.affine_grid(theta, [number, 3, size, size], align_corners=False)
    views = F.grid_sample(pixel_values, grid, padding_mode="reflection", align_corners=False)
    contrast, brightness = 0.85 + 0.3 * draws[:, 4], 0.2 * draws[:, 5] - 0.1
    return (views * contrast[:, None, None, None] + brightness[:, None, None, None]).clamp(-1, 1)
