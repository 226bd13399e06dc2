"""What the block-wise score costs: ``python -m benchmarks.llm_encoding [tokens] [rounds] [model folder]``.

Times, in turns within one process, an ordinary forward pass of the language model, the same with the context-free pass
beside it (of whole blocks, and of attention alone), and reading the encoding from the cache. Without a folder the model
is four blocks of Llama 3.2 1B's size with random weights. The ratio to the forward pass should be at most 2.0, with
attention alone 1.15, and a cached encoding be read over 100 times faster than it is computed. A GPU is used if there is
one.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, LlamaConfig

from src.modules.llmdiff.decoder import Decoder
from src.modules.llmdiff.encoder import EncodingCache, TextStates
from src.modules.llmdiff.language_model import Identity
from src.modules.llmdiff.options import EncodingOptions
from src.modules.llmdiff.states import read_states


def language_model(folder: str) -> Decoder:
    """A model from disk, or random weights."""
    if folder:
        return Decoder(AutoModelForCausalLM.from_pretrained(folder, dtype="auto", use_safetensors=True))
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=4,
        num_attention_heads=32,
        num_key_value_heads=8,
    )
    return Decoder(AutoModelForCausalLM.from_config(config))


def arms(decoder: Decoder, tokens: int, cache: EncodingCache) -> dict[str, Callable[[], object]]:
    """What is compared; one prompt each."""
    ids = torch.arange(1, tokens + 1)[None]
    full, attention = EncodingOptions(), EncodingOptions(state="attention")
    identity = Identity("benchmark", "", "")
    cache.write(cache.key(identity, full, "a prompt"), read_states(decoder, ids, full)[0])

    def cached() -> TextStates:
        row = cache.read(cache.key(identity, full, "a prompt"))
        assert row is not None
        return TextStates.stack([row.to(decoder.module.device)])

    return {
        "forward pass": lambda: decoder.run(ids),
        "with context-free blocks": lambda: read_states(decoder, ids, full),
        "with context-free attention": lambda: read_states(decoder, ids, attention),
        "from the cache": cached,
    }


def seconds(run: Callable[[], object], device: str) -> float:
    """One run."""
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main(tokens: int, rounds: int, folder: str) -> None:
    """Measure and print."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    decoder = language_model(folder)
    decoder.to(torch.device(device))
    with tempfile.TemporaryDirectory() as cache_dir:
        compared = arms(decoder, tokens, EncodingCache(Path(cache_dir)))
        measured: dict[str, list[float]] = {name: [] for name in compared}
        for round_number in range(rounds + 1):
            for name, run in compared.items():
                elapsed = seconds(run, device)
                # The first round warms up.
                if round_number:
                    measured[name].append(elapsed)
    title = f"{folder or 'random weights'}, {len(decoder.blocks)} blocks of width {decoder.width}, {tokens} tokens"
    table = Table("arm", "fastest (s)", "median (s)", "ratio of fastest", title=f"{title}, {rounds} rounds, {device}")
    fastest = min(measured["forward pass"])
    for name, times in measured.items():
        median = sorted(times)[len(times) // 2]
        table.add_row(name, f"{min(times):.4f}", f"{median:.4f}", f"{min(times) / fastest:.4f}")
    Console().print(table)
    hit = min(measured["with context-free blocks"]) / min(measured["from the cache"])
    Console().print(f"a cached encoding is read {hit:.0f} times faster than it is computed")


if __name__ == "__main__":
    tokens, rounds, folder = (*sys.argv[1:], *("128", "7", "")[len(sys.argv) - 1 :])
    main(int(tokens), int(rounds), folder)
