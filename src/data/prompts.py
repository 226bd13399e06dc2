"""Turn a prompt that names concepts, ``a <rex> next to a <mittens>``, into plain text and token positions."""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

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
"""The only template of the ablation; banks are extracted with it."""

_MENTION = re.compile(r"<([A-Za-z0-9_.-]+)>")
# The greedy start makes the pattern match the last determiner before the mention.
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
    """A prompt in which class nouns stand for concepts, and the places of these concepts."""

    plain: str
    mentions: tuple[Mention, ...]


def parse_prompt(prompt: str, class_nouns: Mapping[str, str]) -> MarkedPrompt:
    """Replace every ``<name>`` by its class noun, and record its place.

    V* takes the place of the nearest determiner before a mention ("a", "the", "my" ... with at most three adjectives
    between them); if there is none, "a" is inserted.

    Args:
        prompt: Text with any number of mentions, repeated or of equal nouns.
        class_nouns: Name of a concept to its class noun.

    Raises:
            ValueError: If a mention names an unknown concept.
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


def tokenize(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> Tensor:
    """Tokenize prompts without truncation, padded to the encoder's length, ``(B, L)``.

    Raises:
        ValueError: If a prompt has more tokens than the text encoder takes.
    """
    limit = tokenizer.model_max_length
    for prompt in prompts:
        length = len(tokenizer(prompt).input_ids)
        if length > limit:
            raise ValueError(f"prompt of {length} tokens, but the text encoder takes {limit}: shorten {prompt!r}")
    return tokenizer(list(prompts), padding="max_length", max_length=limit, return_tensors="pt").input_ids


def token_positions(tokenizer: PreTrainedTokenizerBase, text: str, characters: tuple[int, int]) -> list[int]:
    """List the positions of the tokens that cover ``text[characters[0]:characters[1]]``; the start token is 0."""
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    start, stop = characters
    return [at for at, (first, last) in enumerate(offsets) if first < stop and last > start and last > first]


def concept_positions(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    class_nouns: Mapping[str, str],
    as_read: Callable[[str], str] = str,
) -> tuple[MarkedPrompt, list[tuple[str, list[int]]]]:
    """Parse a prompt, and find the token positions of each mention: the place of V*, then the noun's tokens.

    Args:
        tokenizer: Tokenizer of the text encoder.
        prompt: Text with any number of mentions.
        class_nouns: Name of a concept to its class noun.
        as_read: Changes a prompt as a pipeline does before it tokenises it, such as to lower case; the length stays.
    """
    marked = parse_prompt(prompt, class_nouns)
    text = as_read(marked.plain)
    rows = [
        (m.name, _slot(tokenizer, text, m.article) + token_positions(tokenizer, text, m.noun)) for m in marked.mentions
    ]
    return marked, rows


def concept_span(
    tokenizer: PreTrainedTokenizerBase, template: str, class_noun: str, as_read: Callable[[str], str] = str
) -> tuple[str, slice]:
    """Fill a template with "a <noun>", and find the span of that phrase in tokens: the place of V* and the noun.

    Raises:
        ValueError: If the noun is empty or has no token of its own.
    """
    if not class_noun.strip():
        raise ValueError("class_noun is empty; give what the subject is, such as class_noun=dog")
    prompt = template.format(f"a {class_noun}")
    text, start = as_read(prompt), len(prompt) - len(class_noun)
    positions = _slot(tokenizer, text, (start - 2, start - 1)) + token_positions(tokenizer, text, (start, len(text)))
    if len(positions) < 2 or positions != list(range(positions[0], positions[-1] + 1)):
        raise ValueError(f"class_noun {class_noun!r} has no tokens of its own in {prompt!r}; use a plain word or two")
    return prompt, slice(positions[0], positions[-1] + 1)


def _slot(tokenizer: PreTrainedTokenizerBase, text: str, article: Characters) -> list[int]:
    """Return the position of V*: the token of the article, its last one if T5 has a token for the space before it."""
    return token_positions(tokenizer, text, article)[-1:]


def initial_vector(tokenizer: PreTrainedTokenizerBase, embedding: Tensor, word: str) -> Tensor:
    """Compute the initial V*, the mean embedding of a word's tokens, ``(D,)``.

    Args:
        tokenizer: Tokenizer of the text encoder.
        embedding: Token embeddings of the text encoder, ``(V, D)``.
        word: A rare token such as ``ktn``, or the class noun.
    """
    ids = torch.tensor(tokenizer(word, add_special_tokens=False).input_ids)
    return embedding[ids].float().mean(0)
