"""The look of all pages: every colour has a name, follows the reader's setting, and can be read on its ground."""

import re

import pytest

from src.data.page import STYLESHEET

LIGHT, DARK = (
    dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", block))
    for block in re.findall(r":root \{(.*?)\}", STYLESHEET, re.S)
)


def luminance(colour: str) -> float:
    """As WCAG 2.2 defines it."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_text_can_be_read_on_its_ground(colours: dict[str, str]) -> None:
    """The contrast that WCAG 2.2 asks of text is 4.5."""
    inks, grounds = ("ink", "soft", "accent", "good", "bad"), ("paper", "panel", "raised")
    pairs = [(ink, ground) for ink in inks for ground in grounds]
    for ink, ground in [*pairs, ("on-accent", "accent"), ("ink", "tint")]:
        low, high = sorted(map(luminance, (colours[ink], colours[ground])))
        assert (high + 0.05) / (low + 0.05) >= 4.5, f"{ink} on {ground}"


def test_the_look_has_a_name_for_every_colour_and_fetches_nothing() -> None:
    assert LIGHT.keys() == DARK.keys() and len(LIGHT) > 8
    rules = re.sub(r"/\*.*?\*/|:root \{.*?\}", "", STYLESHEET, flags=re.S)
    assert not re.findall(r"#[0-9a-f]{3,8}\b", rules) and "http" not in STYLESHEET and "url(" not in STYLESHEET
    named = set(re.findall(r"--([a-z-]+):", STYLESHEET))
    assert set(re.findall(r"var\(--([a-z-]+)\)", rules)) - named == {"columns"}
