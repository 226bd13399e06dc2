"""Tokenizers of three kinds, made without a download: CLIP's real one, one like T5's and one like Llama's."""

import gzip
from pathlib import Path

import open_clip
from open_clip.tokenizer import bytes_to_unicode
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast, T5TokenizerFast

SPACE = "\u2581"
WORDS = """
a an the of and on in at my his two dog dogs cat cats golden retriever coffee cup photo red big fluffy grass next to
wearing A The My one that with man is it
"""
ENDINGS = ("s", "'", "'s", ",", ".", "ing", "ed", "er", "ly")


def clip() -> PreTrainedTokenizerBase:
    """The tokenizer of Stable Diffusion and SDXL, out of the merges that open_clip ships."""
    path = Path(open_clip.__file__).with_name("bpe_simple_vocab_16e6.txt.gz")
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")[1 : 49152 - 256 - 2 + 1]
    merges = [tuple(line.split()) for line in lines]
    letters = list(bytes_to_unicode().values())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges)]
    vocabulary = {token: at for at, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)


def t5() -> PreTrainedTokenizerBase:
    """Unigrams: words with the space before them, what may follow a word, and every character."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    letters = [(chr(code), -20.0) for code in range(33, 127)]
    # T5's vocabulary has no piece for "a" with its space.
    whole = [(SPACE + word, -5.0) for word in WORDS.split() if word != "a"]
    vocabulary = [*special, (SPACE, -10.0), *whole, *((piece, -6.0) for piece in ENDINGS), *letters]
    return T5TokenizerFast(vocab=list(dict(vocabulary).items()), extra_ids=0, model_max_length=120)


def llama() -> PreTrainedTokenizerBase:
    """Byte pairs with the space before a word, upper and lower case, and bytes for what is unknown."""
    spelled = [[SPACE, *word] for word in WORDS.split()]
    merges: list[tuple[str, str]] = []
    for word in spelled:
        for length in range(1, len(word)):
            pair = ("".join(word[:length]), word[length])
            merges += [pair] if pair not in merges else []
    pieces = ["<pad>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), SPACE]
    pieces += [*map(chr, range(33, 127)), *map("".join, merges)]
    model = models.BPE({piece: at for at, piece in enumerate(dict.fromkeys(pieces))}, merges, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme="first", split=False)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=256
    )
