"""A local vision-language model that rates pictures from 0 to 4, as people and GPT-4o do in DreamBench++.

The two questions are those of the benchmark (arXiv 2406.16855): does a picture show the subject of another one, and
does it show what a prompt says; the words are ours. No text is parsed. The model's answer is opened with ``Score: ``,
and with z_k its logit there for the token of k, the rating is the expectation over the five answers,

    rating = sum_k k p_k,    p = softmax(z_0, ..., z_4),

which is deterministic and finer than the likeliest answer. Where the likeliest token of all is none of the five, so
that a greedy answer could not be parsed, the rating counts as not ``answered``, and the table says how often that was.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from src.data.finite import check_finite
from src.data.first_looks import FirstLook
from src.data.identity import folder_identity
from src.data.images import Picture, as_image

ANSWERS = ("0", "1", "2", "3", "4")
OPENING = "Score:"
"""How the model's answer begins; a space and one of the answers follow."""
SCALE = "Answer with one whole number: 0 is not at all, 1 hardly, 2 in part, 3 mostly, 4 entirely."
PRESERVATION = (
    "The first picture shows a {noun}. Judge whether the {noun} in the second picture could be the very same one: "
    "compare its shape, its colours, its texture and, if it has one, its face. Place, pose, light and style of the "
    f"picture may differ and do not count. How far is it the same? {SCALE}"
)
FOLLOWING = (
    'Judge whether the picture shows what this text says: "{prompt}". What is there, how many, what each is like, '
    f"where it stands, and the style of the picture count; beauty does not. How far does it? {SCALE}"
)


@dataclass(frozen=True)
class Ratings:
    """What a model says of N pictures.

    Attributes:
        scores: Expected answer to each question, ``(N,)`` in [0, 4], float64.
        answered: Share of a picture's questions whose likeliest answer is one of the five, ``(N,)`` in [0, 1], float64.
    """

    scores: Tensor
    answered: Tensor


def _look(folder: str) -> None:
    place = Path(folder).expanduser()
    if not (place / "config.json").is_file():
        raise ValueError(f"{folder} is no vision-language model folder: it has no config.json; fetch the model first")
    if not any(place.glob("*.safetensors")):
        raise ValueError(f"{folder} holds no *.safetensors; weights in another format are not read")


VisionModelFolder = Annotated[str, FirstLook(_look)]
"""A local folder of a vision-language model in the layout of transformers."""


class VisionJudge:
    """Rates pictures by any local model of transformers that reads images and text.

    Code that a folder brings along is not run, and nothing is fetched. The model runs on the GPU where there is one, in
    the precision of its weights.

    Args:
        folder: Holds the model and its processor, as ``save_pretrained`` writes them.

    Raises:
        ValueError: If there is no such model in the folder.
    """

    def __init__(self, folder: VisionModelFolder) -> None:
        _look(folder)
        self.folder = Path(folder).expanduser()

    @cached_property
    def identity(self) -> str:
        """Hash of the model's files and of the questions."""
        return f"{self.folder.name}, weights {folder_identity(self.folder)[:16]}, asked {PRESERVATION} {FOLLOWING}"

    def preservation(self, pictures: Sequence[Picture], references: Sequence[Picture], noun: str) -> Ratings:
        """Rate whether each picture shows the subject of the references: the mean over references.

        Args:
            pictures: N pictures.
            references: One or several pictures of the subject.
            noun: What it is.
        """
        question = PRESERVATION.replace("{noun}", noun)
        rated = [[self._rated(question, [reference, one]) for reference in references] for one in pictures]
        means = torch.tensor(rated, dtype=torch.float64).mean(1)
        return Ratings(*means.unbind(1))

    def following(self, pictures: Sequence[Picture], prompts: Sequence[str]) -> Ratings:
        """Rate whether each picture shows what its own prompt says.

        Args:
            pictures: N pictures.
            prompts: N plain prompts.
        """
        asked = zip(pictures, prompts, strict=True)
        rated = [self._rated(FOLLOWING.replace("{prompt}", prompt), [one]) for one, prompt in asked]
        return Ratings(*torch.tensor(rated, dtype=torch.float64).unbind(1))

    def _rated(self, question: str, pictures: Sequence[Picture]) -> tuple[float, float]:
        logits = self.logits(question, [as_image(one) for one in pictures])
        answers = logits[self.tokens]
        expected = answers.double().softmax(0) @ torch.arange(len(ANSWERS), dtype=torch.float64)
        return float(expected), float(logits.argmax() in self.tokens)

    @torch.inference_mode()
    def logits(self, question: str, images: Sequence[Image.Image]) -> Tensor:
        """Logits of the token after ``Score: ``, float32 ``(V,)`` on the CPU.

        Raises:
            ValueError: If they are not finite.
        """
        text = self._text(question, len(images))
        # A template that writes the first token itself leaves none to the tokenizer.
        own_start = bool(self._tokenizer.bos_token) and text.startswith(self._tokenizer.bos_token)
        inputs = self.processor(
            text=[text + self._opening],
            images=[list(images)],
            return_tensors="pt",
            **({"add_special_tokens": False} if own_start else {}),
        )
        padding = self._tokenizer.pad_token_id
        given = self.model.generate(
            **inputs.to(self.model.device, self.model.dtype),
            max_new_tokens=1,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            pad_token_id=self._tokenizer.eos_token_id if padding is None else padding,
        )
        logits: Tensor = given.logits[0][0].float().cpu()
        check_finite(logits, f"what {self.folder} answers", "its weights may be damaged: fetch them anew")
        return logits

    def _text(self, question: str, number: int) -> str:
        """The question as the model's own template writes it, up to where the answer begins."""
        content = [*({"type": "image"} for _ in range(number)), {"type": "text", "text": question}]
        asked = [{"role": "user", "content": content}]
        return str(self.processor.apply_chat_template(asked, add_generation_prompt=True, tokenize=False))

    @property
    def _tokenizer(self) -> Any:
        return self.processor.tokenizer

    @property
    def _opening(self) -> str:
        return self._answering[0]

    @property
    def tokens(self) -> Tensor:
        """Ids of the five answers, ``(5,)``."""
        return self._answering[1]

    @cached_property
    def _answering(self) -> tuple[str, Tensor]:
        """How the answer is opened, and the id of each number behind it; a space belongs to either.

        Raises:
            ValueError: If a number is no token of its own there.
        """
        text = self._text("", 0)
        for opening, answers in ((f"{OPENING} ", ANSWERS), (OPENING, tuple(f" {one}" for one in ANSWERS))):
            before = self._ids(text + opening)
            after = [self._ids(text + opening + answer) for answer in answers]
            if all(ids[:-1] == before for ids in after) and len({ids[-1] for ids in after}) == len(ANSWERS):
                return opening, torch.tensor([ids[-1] for ids in after])
        raise ValueError(
            f"{self.folder} reads 0 to 4 as more than one token each after {OPENING!r}; give another model"
        )

    def _ids(self, text: str) -> list[int]:
        found: list[int] = self._tokenizer(text, add_special_tokens=False).input_ids
        return found

    @cached_property
    def processor(self) -> Any:
        """Images and text to the model's input.

        Raises:
            ValueError: If it cannot be read, or has no template of a conversation.
        """
        with self._reading():
            processor = AutoProcessor.from_pretrained(self.folder, local_files_only=True, trust_remote_code=False)
        if not getattr(processor, "chat_template", None):
            raise ValueError(f"{self.folder} has no chat_template, without which nobody knows how the model is asked")
        return processor

    @cached_property
    def model(self) -> Any:
        """The network.

        Raises:
            ValueError: If it cannot be read.
        """
        with self._reading(), torch.random.fork_rng(devices=[]):
            model = AutoModelForImageTextToText.from_pretrained(
                self.folder, local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype="auto"
            )
        return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, KeyError, ImportError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise ValueError(
                f"{self.folder} cannot be read as a vision-language model of transformers: {reason}; give the folder "
                "of one that AutoModelForImageTextToText knows, such as a Qwen2-VL, Idefics or LLaVA model"
            ) from error

    def check(self) -> None:
        """Read the model, and make sure that it can be asked.

        Raises:
            ValueError: If it cannot.
        """
        _ = self.model, self.tokens
