"""Pretrain the world's language model, a Llama that predicts the next token of captions."""

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer, BatchEncoding, LlamaConfig, LlamaForCausalLM

from src.data.ranges import Count, Seed
from src.data.texts import Text
from src.data.world.tokenizers import write_llm_tokenizer
from src.modules.training.groups import matrices_and_vectors
from src.modules.training.learner import Learner, TrainingRecord


class LanguageModelPretraining(Learner):
    """Trains a LlamaForCausalLM to predict the next token of texts.

    Args:
        export_dir: Folder that receives a Hugging Face model and its tokenizer.
        hidden_size: Width of the states.
        intermediate_size: Width inside the MLPs.
        num_layers: Number of blocks.
        num_heads: Number of attention heads; keys and values have as many.
        context: Longest text in tokens.
        seed: Seed of the initial weights.
    """

    validates_average: ClassVar[bool] = False

    def __init__(
        self,
        export_dir: str,
        hidden_size: Count = 160,
        intermediate_size: Count = 432,
        num_layers: Count = 6,
        num_heads: Count = 5,
        context: Count = 256,
        seed: Seed = 0,
    ) -> None:
        super().__init__()
        self.export_dir, self.seed = export_dir, seed
        # Embeddings belong to the vocabulary that they were trained with, so a resumed run keeps the one in its folder.
        if not (Path(export_dir) / "tokenizer.json").exists():
            write_llm_tokenizer(export_dir, context)
        self.tokenizer = AutoTokenizer.from_pretrained(export_dir)
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(self.tokenizer),
            hidden_size=hidden_size,
            intermediate_size=intermediate_size,
            num_hidden_layers=num_layers,
            num_attention_heads=num_heads,
            max_position_embeddings=context,
            tie_word_embeddings=True,
            bos_token_id=self.tokenizer.bos_token_id,
            eos_token_id=self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        self.model = LlamaForCausalLM(config)

    def losses(self, batch: dict[str, Any], generators: list[Generator]) -> Tensor:
        """Compute the cross-entropy of every token of one batch, ``(N,)``."""
        sequences = [[*ids, self.tokenizer.eos_token_id] for ids in self._tokens(batch["texts"]).input_ids]
        input_ids, position_ids = packed(sequences, self.tokenizer.pad_token_id)
        return self.token_losses(self.logits(input_ids, position_ids), input_ids)

    def logits(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        """Predict logits of the next token ``(R, L, V)``; tokens do not attend beyond the start of their own text."""
        ids, positions = input_ids.to(self.device), position_ids.to(self.device)
        return self.model(input_ids=ids, position_ids=positions, use_cache=False).logits

    def token_losses(self, logits: Tensor, input_ids: Tensor) -> Tensor:
        """Compute the cross-entropy of every token but the first of each text, ``(N,)``."""
        targets = input_ids[:, 1:].to(logits.device)
        counted = (targets != self.tokenizer.pad_token_id) & (targets != self.tokenizer.bos_token_id)
        return F.cross_entropy(logits[:, :-1][counted].float(), targets[counted], reduction="none")

    def validate(self, batch: dict[str, Any], generators: list[Generator]) -> dict[str, Tensor]:
        """Compute the same loss, and for each skill whether tokens are predicted that the context determines."""
        texts: list[Text] = batch["texts"]
        encoding = self._tokens(texts)
        sequences = [torch.tensor([*ids, self.tokenizer.eos_token_id]) for ids in encoding.input_ids]
        input_ids = pad_sequence(sequences, batch_first=True, padding_value=self.tokenizer.pad_token_id)
        position_ids = torch.arange(input_ids.shape[1]).expand_as(input_ids)
        logits = self.logits(input_ids, position_ids)
        found = {"loss": self.token_losses(logits, input_ids)}
        hits = logits[:, :-1].argmax(-1).cpu() == input_ids[:, 1:].cpu()
        for skill in sorted({text.skill for text in texts} - {""}):
            right = [
                hits[row, index - 1]
                for row, text in enumerate(texts)
                if text.skill == skill
                for index in known_tokens(text, encoding.offset_mapping[row])
            ]
            found[skill] = torch.stack(right).float()
        return found

    def _tokens(self, texts: list[Text]) -> BatchEncoding:
        return self.tokenizer([text.text for text in texts], return_offsets_mapping=True)

    def groups(self) -> list[dict[str, Any]]:
        """Group the parameters so that gains have no weight decay."""
        return matrices_and_vectors(self.model)

    def export(self, record: TrainingRecord) -> dict[str, str]:
        """Write the weights in half precision beside the tokenizer."""
        self.model.half().save_pretrained(self.export_dir)
        return {"language model": self.export_dir}


def packed(sequences: list[list[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Pack sequences of unequal length into few rows that are as long as the longest sequence.

    Args:
        sequences: Token ids.
        pad: Id that fills the rest of a row.

    Returns:
            ``input_ids`` and ``position_ids``, both ``(R, L)``; positions count from 0 in each sequence and rest.
    """
    length = max(map(len, sequences))
    rows: list[list[list[int]]] = []
    for sequence in sorted(sequences, key=len, reverse=True):
        fitting = (row for row in rows if sum(map(len, row)) + len(sequence) <= length)
        row = next(fitting, None)
        if row is None:
            rows.append(row := [])
        row.append(sequence)
    filled = [[*row, [pad] * (length - sum(map(len, row)))] for row in rows]
    input_ids = [[token for part in row for token in part] for row in filled]
    position_ids = [[position for part in row for position in range(len(part))] for row in filled]
    return torch.tensor(input_ids), torch.tensor(position_ids)


def known_tokens(text: Text, offsets: list[tuple[int, int]]) -> list[int]:
    """List the tokens that end inside a known span of the text; a token also covers the space before its word."""
    return [index for index, (_, end) in enumerate(offsets) if any(first < end <= last for first, last in text.known)]
