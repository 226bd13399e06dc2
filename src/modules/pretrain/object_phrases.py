"""Where captions name objects, and text states in which an object can be read from its own phrase alone."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from src.data.world.vocabulary import COLORS, NOUNS, PATTERNS


class ObjectPhrases:
    """Tells "a red striped dog" from the rest of a caption, in token ids.

    Args:
        tokenizer: Has every word of the world as one token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.kinds = [_ids(tokenizer, words) for words in (tuple(COLORS), PATTERNS, NOUNS)]
        self.article = _ids(tokenizer, ("a",))

    def places(self, ids: Tensor) -> Tensor:
        """The phrase that each token of ``ids`` ``(B, L)`` belongs to: 1 and up in order, 0 outside of phrases.

        A phrase is colour, pattern and noun as far as they are named, and the article right before them; it ends at
        the noun.
        """
        named = torch.isin(ids, torch.cat(self.kinds))
        article = torch.isin(ids, self.article) & torch.roll(named, -1, dims=1)
        nouns = torch.isin(ids, self.kinds[-1]).long()
        return (nouns.cumsum(1) - nouns + 1) * (named | article)

    def others(self, ids: Tensor, generator: torch.Generator) -> Tensor:
        """The same captions of other objects: every colour, pattern and noun is drawn anew."""
        for kind in self.kinds:
            drawn = kind[torch.randint(len(kind), ids.shape, generator=generator)]
            ids = torch.where(torch.isin(ids, kind), drawn, ids)
        return ids

    def read_alone(self, encode: Callable[[Tensor], Tensor], ids: Tensor, generator: torch.Generator) -> Tensor:
        """Text states ``(B, L, D)`` that tell of each object in its own phrase and nowhere else.

        A causal encoder tells of a noun in all rows after it too. Here the rows of a phrase come from the caption in
        which all *other* objects are drawn anew, and rows outside of phrases from the one in which all of them are.

        Args:
            encode: Token ids ``(N, L)`` to states ``(N, L, D)``.
            ids: Token ids, shape ``(B, L)``.
            generator: Of the other objects.
        """
        places = self.places(ids)
        variants = places.amax(1) + 1
        first = variants.cumsum(0) - variants
        caption = torch.arange(len(ids)).repeat_interleave(variants)
        kept = torch.arange(len(caption)) - first[caption]
        own = (places[caption] == kept[:, None]) & (kept > 0)[:, None]
        states = encode(torch.where(own, ids[caption], self.others(ids, generator)[caption]))
        return states[first[:, None] + places, torch.arange(ids.shape[1])]


def _ids(tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> Tensor:
    return torch.tensor(tokenizer.convert_tokens_to_ids([f"{word}</w>" for word in words]))
