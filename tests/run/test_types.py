from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from src.run.cli import respelled
from src.run.types import check_types


def config(target: str, **arguments: Any):
    return OmegaConf.create({"part": {"inner": {"_target_": target, **arguments}}})


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        (
            "max_steps",
            "abc",
            "part.inner.max_steps is 'abc', but a whole number is expected; type part.inner",
        ),
        ("max_steps", 1.5, "is 1.5, but a whole number is expected"),
        ("max_steps", True, "is True, but a whole number is expected"),
        ("max_steps", None, "is None, but a whole number is expected"),
        ("rate", "fast", "is 'fast', but a number is expected"),
        ("faithful", "yes please", "is 'yes please', but true or false is expected"),
        ("rank", "8x", "is '8x', but a whole number or null is expected"),
        ("word", 3, "is 3, but text is expected"),
    ],
)
def test_a_value_of_the_wrong_type_gets_a_sentence(name: str, value: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        check_types(config("tests.run.test_types.Part", **{name: value}))


def test_values_of_the_right_type_and_what_is_no_plain_type_pass() -> None:
    right = {"max_steps": 3, "rate": 1, "faithful": False, "rank": None, "word": "x", "anything": ["x", {"y": 1}]}
    check_types(config("tests.run.test_types.Part", **right))
    check_types(config("tests.run.test_types.Part", max_steps="???"))


def test_parts_in_lists_are_checked() -> None:
    cfg = OmegaConf.create({"parts": [{"_target_": "tests.run.test_types.Part", "rate": "x"}]})
    with pytest.raises(ValueError, match=r"parts\[0\].rate is 'x'"):
        check_types(cfg)


def test_a_target_that_is_not_there_is_left_to_who_builds_it() -> None:
    check_types(config("src.no.such.Thing", rate="x"))


class Part:
    def __init__(
        self,
        max_steps: int = 1,
        rate: float = 1.0,
        faithful: bool = False,
        rank: int | None = None,
        word: str = "",
        anything: Any = None,
    ) -> None: ...


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["backbone=world_infinity"],
            "a NextScalePipeline, but a Backbone is needed; choose backbone=.*pixart",
        ),
        (
            ["method=style_svd", "backbone=world_sd"],
            "a UNetBackbone, but a NextScalePipeline is needed; choose backbone=i",
        ),
        (
            ["method=llmdiff", "backbone=pixart_sigma"],
            "a PixArtBackbone, but a UNetBackbone is needed; choose backbone=sd15",
        ),
    ],
)
def test_a_method_says_which_backbones_it_takes_before_weights_are_read(root, arguments, sentence) -> None:
    with initialize_config_dir(str(root / "conf"), version_base="1.3"):
        cfg = compose("generate", respelled([*arguments, "prompt=a dog"], "generate.py"))
    with pytest.raises(ValueError, match=sentence):
        check_types(cfg)
