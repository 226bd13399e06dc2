"""Prompts as tokens: templates of training, and the token positions of concepts."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from src.data.mentions import Characters, MarkedPrompt, Mention, parse_prompt, shown

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


def tokenize(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> Tensor:
    """Tokenize prompts without truncation, padded to the encoder's length, ``(B, L)``.

    Raises:
        ValueError: If a prompt has more tokens than the text encoder takes.
    """
    limit = tokenizer.model_max_length
    for prompt in prompts:
        length = len(tokenizer(prompt).input_ids)
        if length > limit:
            raise ValueError(f"prompt of {length} tokens, but the text encoder takes {limit}: shorten {shown(prompt)}")
    return tokenizer(list(prompts), padding="max_length", max_length=limit, return_tensors="pt").input_ids


def token_positions(tokenizer: PreTrainedTokenizerBase, text: str, characters: Characters) -> list[int]:
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
        as_read: Changes a prompt as a pipeline does before it tokenises it, such as to lower case.

    Raises:
        ValueError: As ``parse_prompt``, or if the tokenizer joins a mention with the text beside it, so that the tokens
            are not those of the noun in "a <noun>".
    """
    marked = parse_prompt(prompt, class_nouns)
    return marked, [
        (mention.name, _mention_positions(tokenizer, marked.plain, mention, class_nouns[mention.name], as_read))
        for mention in marked.mentions
    ]


def _mention_positions(
    tokenizer: PreTrainedTokenizerBase, plain: str, mention: Mention, noun: str, as_read: Callable[[str], str]
) -> list[int]:
    text, alone = as_read(plain), as_read(f"a {noun}")
    # Lower case can be longer than upper case.
    article, place = (
        (len(as_read(plain[:start])), len(as_read(plain[:stop]))) for start, stop in (mention.article, mention.noun)
    )
    slot, found = _slot(tokenizer, text, article), token_positions(tokenizer, text, place)
    ids, ids_alone = tokenizer(text).input_ids, tokenizer(alone).input_ids
    expected = [ids_alone[at] for at in token_positions(tokenizer, alone, (2, len(alone)))]
    if [ids[at] for at in found] != expected or len(slot) != 1 or slot[0] in found:
        near = text[max(article[0] - 12, 0) : place[1] + 12]
        raise ValueError(
            f"<{mention.name}> cannot be told apart in {shown(near)}: the text encoder reads {noun!r} there as "
            f"{tokenizer.convert_ids_to_tokens([ids[at] for at in found])}, but alone as "
            f"{tokenizer.convert_ids_to_tokens(expected)}; write <{mention.name}> with spaces around it"
        )
    return slot + found


def concept_span(
    tokenizer: PreTrainedTokenizerBase, template: str, class_noun: str, as_read: Callable[[str], str] = str
) -> tuple[str, slice]:
    """Fill a template with "a <noun>", and find the span of that phrase in tokens: the place of V* and the noun.

    Raises:
        ValueError: If the noun is empty or has no token of its own.
    """
    if not class_noun.strip():
        raise ValueError("class_noun is empty; give what the subject is, such as class_noun=dog")
    prompt = template.replace("{}", f"a {class_noun}")
    text, start = as_read(prompt), len(as_read(prompt[: len(prompt) - len(class_noun)]))
    positions = _slot(tokenizer, text, (start - 2, start - 1)) + token_positions(tokenizer, text, (start, len(text)))
    if len(positions) < 2 or positions != list(range(positions[0], positions[-1] + 1)):
        raise ValueError(f"class_noun {class_noun!r} has no tokens of its own in {prompt!r}; use a plain word or two")
    return prompt, slice(positions[0], positions[-1] + 1)


def _slot(tokenizer: PreTrainedTokenizerBase, text: str, article: Characters) -> list[int]:
    """Find the position of V*: the last token of the article, which covers nothing else; empty if there is none.

    T5 may have a token of its own for the space before the article, and other tokenizers count that space in.
    """
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    start, stop = article
    covering = token_positions(tokenizer, text, article)[-1:]
    return [at for at in covering if not text[offsets[at][0] : start].strip() and offsets[at][1] <= stop]


def initial_vector(tokenizer: PreTrainedTokenizerBase, embedding: Tensor, word: str) -> Tensor:
    """Compute the initial V*, the mean embedding of a word's tokens, ``(D,)``.

    Args:
        tokenizer: Tokenizer of the text encoder.
        embedding: Token embeddings of the text encoder, ``(V, D)``.
        word: A rare token such as ``ktn``, or the class noun.
    """
    ids = torch.tensor(tokenizer(word, add_special_tokens=False).input_ids)
    return embedding[ids].float().mean(0)
