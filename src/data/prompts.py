"""Prompt templates, and prompts that name concepts in angle brackets: ``a <rex> next to a <mittens> on the grass``."""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass

TEMPLATES = (
    "{}",
    "a {}",
    "photo of {}",
    "a photo of {}",
    "a photo of a {}",
    "a fancy photo of a {}",
    "A close-up, detailed photo of {}",
)
"""The seven training templates of LaTexBlend; the slot takes ``a <noun>`` and always comes last."""

FIXED_TEMPLATE = "photo of {}"
"""The one template of the ablation, and the one from which a bank is extracted."""

_MENTION = re.compile(r"<([A-Za-z0-9_.-]+)>")
# The greedy start makes it the last determiner before the mention.
_DETERMINER = re.compile(r"(?:.*\b|^)(a|an|the|this|that|my|one)(?:\s+[A-Za-z-]+){0,3}\s+$", re.IGNORECASE | re.DOTALL)

Characters = tuple[int, int]


@dataclass(frozen=True)
class Mention:
    """Where a concept stands in the plain prompt, in characters.

    ``article`` is the word whose token gives its place to V*; ``noun`` is the class noun. Adjectives may stand between.
    """

    name: str
    article: Characters
    noun: Characters


@dataclass(frozen=True)
class MarkedPrompt:
    """A prompt as the text encoder sees it, and the concepts it mentions."""

    plain: str
    mentions: tuple[Mention, ...]


def parse_prompt(prompt: str, class_nouns: Mapping[str, str]) -> MarkedPrompt:
    """Replace every ``<name>`` by its class noun and remember where.

    The nearest determiner before a mention ("a", "the", "my" ... with at most three adjectives between) takes V*; where
    there is none, "a" is inserted.

    Args:
        prompt: Text with any number of mentions, repeated or of equal nouns.
        class_nouns: Concept name to class noun.

    Raises:
        ValueError: If a mention names no known concept.
    """
    plain, mentions, at = "", [], 0
    for match in _MENTION.finditer(prompt):
        name = match.group(1)
        if name not in class_nouns:
            raise ValueError(_unknown(name, prompt, class_nouns))
        plain += prompt[at : match.start()]
        determiner = _DETERMINER.match(plain)
        if determiner is None:
            article = (len(plain), len(plain) + 1)
            plain += "a "
        else:
            article = determiner.span(1)
        noun = (len(plain), len(plain) + len(class_nouns[name]))
        plain += class_nouns[name]
        mentions.append(Mention(name, article, noun))
        at = match.end()
    return MarkedPrompt(plain + prompt[at:], tuple(mentions))


def _unknown(name: str, prompt: str, class_nouns: Mapping[str, str]) -> str:
    close = difflib.get_close_matches(name, class_nouns, n=1)
    if close:
        return f"prompt {prompt!r} names <{name}>, which is no concept; did you mean <{close[0]}>?"
    known = ", ".join(f"<{known}>" for known in class_nouns) or "none"
    return f"prompt {prompt!r} names <{name}>, but the concepts given are: {known}; add bank.{name}=PATH"
