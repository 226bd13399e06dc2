"""Where the image looks for each word in joint attention, against torch's own attention to one row at a time."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from src.data.request import Request
from src.modules.backbones.base import Backbone
from src.modules.latexblend.generator import ConceptGenerator
from src.modules.latexblend.joint_attention import caught, recorded_joint_attention
from tests.modules.latexblend.test_joint_attention import JOINT, bank

REQUEST = Request("a <rex> on the grass", 0)


@pytest.fixture(params=JOINT)
def generator(request: pytest.FixtureRequest, tmp_path: Path) -> ConceptGenerator:
    backbone: Backbone = JOINT[request.param](tmp_path)
    return ConceptGenerator(backbone, {"rex": bank(backbone, 1)}, {"num_inference_steps": 1, "guidance_scale": 1.0})


def test_shares_are_those_of_attention_itself(generator: ConceptGenerator) -> None:
    denoiser, front = generator.backbone.denoiser, generator.backbone.joint == "text first"
    expected: dict[str, Tensor] = {}

    def change_in(name: str, named: Any) -> Any:
        if (text := named.get("encoder_hidden_states")) is None:
            return None
        length = text.shape[1]

        def seen(given: dict) -> dict:
            total = given["query"].shape[-2]
            # Values of which each row is another direction: what comes out is how much of each was taken.
            rows = torch.eye(total).expand(*given["query"].shape[:2], total, total)
            taken = F.scaled_dot_product_attention(given["query"], given["key"], rows).mean(1)  # (B, T, T)
            expected[name] = taken[:, length:, :length] if front else taken[:, :-length, -length:]
            return given

        return seen

    plain = np.asarray(generator.sample([REQUEST])[0])
    with caught(denoiser, change_in, "missed"), recorded_joint_attention(denoiser, front) as maps:
        watched = np.asarray(generator.sample([REQUEST])[0])
    assert (watched == plain).all()
    assert maps and set(maps) == set(expected)
    for name, found in maps.items():
        torch.testing.assert_close(found, expected[name], rtol=1e-4, atol=1e-6)
        assert 0 < float(found.sum(-1).max()) <= 1 + 1e-5
    hooks = [one for module in denoiser.modules() for one in (module._forward_hooks, module._forward_pre_hooks) if one]
    assert not hooks and (np.asarray(generator.sample([REQUEST])[0]) == plain).all()
