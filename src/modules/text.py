"""From phrases in a prompt to token positions."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from src.data.prompts import MarkedPrompt, parse_prompt


def tokenize(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> Tensor:
    """Token ids padded to the encoder's length, shape ``(B, L)``; never truncated.

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
    """Positions of the tokens that cover ``text[characters[0]:characters[1]]``, counting the start token as 0."""
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    start, stop = characters
    return [at for at, (first, last) in enumerate(offsets) if first < stop and last > start and last > first]


def concept_positions(
    tokenizer: PreTrainedTokenizerBase, prompt: str, class_nouns: Mapping[str, str]
) -> tuple[MarkedPrompt, list[tuple[str, list[int]]]]:
    """Parse a marked prompt and find the rows of each mention: the slot of V*, then the noun's tokens."""
    marked = parse_prompt(prompt, class_nouns)
    rows = [
        (
            m.name,
            token_positions(tokenizer, marked.plain, m.article)[:1] + token_positions(tokenizer, marked.plain, m.noun),
        )
        for m in marked.mentions
    ]
    return marked, rows


def concept_span(tokenizer: PreTrainedTokenizerBase, template: str, class_noun: str) -> tuple[str, slice]:
    """A template filled with "a <noun>", and the span of that phrase in tokens: article (V*'s slot) and noun.

    Raises:
        ValueError: If the noun is empty or has no token of its own.
    """
    if not class_noun.strip():
        raise ValueError("class_noun is empty; give what the subject is, such as class_noun=dog")
    prompt = template.format(f"a {class_noun}")
    start = len(prompt) - len(class_noun) - 2
    positions = token_positions(tokenizer, prompt, (start, len(prompt)))
    if len(positions) < 2 or positions != list(range(positions[0], positions[-1] + 1)):
        raise ValueError(f"class_noun {class_noun!r} has no tokens of its own in {prompt!r}; use a plain word or two")
    return prompt, slice(positions[0], positions[-1] + 1)


def initial_vector(tokenizer: PreTrainedTokenizerBase, embedding: Tensor, word: str) -> Tensor:
    """Mean embedding of a word's tokens, shape ``(D,)``: where V* starts.

    Args:
        tokenizer: Of the text encoder.
        embedding: Its token table, shape ``(V, D)``.
        word: A rare token such as ``ktn``, or the class noun.
    """
    ids = torch.tensor(tokenizer(word, add_special_tokens=False).input_ids)
    return embedding[ids].float().mean(0)
