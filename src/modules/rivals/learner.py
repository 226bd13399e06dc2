"""What all rivals of LaTexBlend have in common when they learn a subject: photos, prompts, class images, loss."""

import contextlib
import sys
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from PIL import Image
from torch import Generator, Tensor, nn

from src.data.banks import LEARNT_CONCEPT
from src.data.commands import command
from src.data.known_words import warn_of_unknown
from src.data.mentions import parse_prompt
from src.data.prompts import TEMPLATES, concept_positions, concept_span, initial_vector, tokenize
from src.data.ranges import Sampling, Seed, Weight
from src.data.request import Request
from src.data.subject import ConceptData
from src.modules.backbones.base import Backbone, Text
from src.modules.backbones.memory import weights_fetched_again
from src.modules.latexblend.flows import Subject
from src.modules.latexblend.learner import class_images, encoded_views
from src.modules.rivals.concept import RivalConcept, embedded
from src.modules.rivals.generator import RivalGenerator
from src.modules.training.diffusion import per_sample_mse, step_generator
from src.modules.training.learner import Learner, TrainingRecord


class Examples(NamedTuple):
    """Images and the prompts that they are learnt with: latents ``(B, C, h, w)``, cells that count ``(B, 1, h, w)``."""

    latents: Tensor
    mask: Tensor
    text: Text

    def joined(self, other: "Examples") -> "Examples":
        """Concatenate these and the others."""
        latents, mask = torch.cat([self.latents, other.latents]), torch.cat([self.mask, other.mask])
        return Examples(latents, mask, self.text.joined(other.text))


class RivalLearner(Learner):
    """Learns one subject from prompts like "photo of V* dog", with the stock model's own forward pass.

    Photos, views, class images, templates, noise and seeds are those of LaTexBlend, so that only the method differs.
    A subclass says what is trained: ``tokens``, the embeddings of the phrase's first T tokens, ``acting``, the context
    in which further weights act, and ``learnt``, the tensors that a file holds.

    Args:
        backbone: The model that is personalised.
        subject: The subject that is learnt.
        cache_dir: Folder for class images and latents, shared with LaTexBlend.
        export_path: File that the concept is written to.
        prior_loss_weight: Weight of the class images; 0 switches them off.
        initializer: Word whose embedding V* starts from.
        sampling: Settings of sample grids: steps, guidance, negative prompt, resolution.
        seed: Seed of noise, timesteps, templates and initial weights.

    Raises:
        ValueError: If the method needs cross-attention, which the model has none of, or a word stands at several places
            of a prompt, see ``stands_once``.
    """

    incidental: ClassVar[tuple[str, ...]] = ("cache_dir", "export_path", "sampling")
    method: ClassVar[str]
    """Name in ``conf/method`` and in files."""
    draws: ClassVar[type[RivalGenerator]] = RivalGenerator
    """What draws with the concept."""
    needs_cross_attention: ClassVar[bool] = True
    """Whether it works only where image and text do not attend to both together, as they do in ``Backbone.joint``."""

    def __init__(
        self,
        backbone: Backbone,
        subject: Subject,
        cache_dir: str,
        export_path: str,
        prior_loss_weight: Weight = 1.0,
        initializer: str = "ktn",
        sampling: Sampling | None = None,
        seed: Seed = 0,
    ) -> None:
        super().__init__()
        self._backbone = (backbone,)
        instead = "learn the subject with method=latexblend, or take backbone=sdxl"
        if backbone.joint and self.needs_cross_attention:
            raise ValueError(
                f"{self.method} is built for models with cross-attention, and {backbone.name} is none; {instead}"
            )
        if not stands_once(backbone, subject.class_noun):
            raise ValueError(
                f"{self.method} needs a word to stand at one place of a prompt, but in {backbone.name} it stands at "
                f"several, one for each text encoder, or inside a template; {instead}"
            )
        self.subject, self.cache_dir, self.export_path = subject, cache_dir, export_path
        self.prior_loss_weight, self.initializer = prior_loss_weight, initializer
        self.sampling, self.seed = sampling, seed
        LEARNT_CONCEPT.check(export_path, self._metadata())
        filled = [concept_span(backbone.tokenizers[0], one, subject.class_noun, backbone.as_read) for one in TEMPLATES]
        self.prompts, self.spans = [prompt for prompt, _ in filled], [span for _, span in filled]
        torch.manual_seed(seed)
        self.tokens = nn.ParameterList(self.first_tokens())
        self.add_weights()

    def add_weights(self) -> None:  # noqa: B027
        """Make what is trained beside the tokens."""

    @property
    def backbone(self) -> Backbone:
        """The model, which checkpoints do not hold."""
        return self._backbone[0]

    def first_tokens(self) -> list[nn.Parameter]:
        """Return the initial embeddings of the phrase's first T tokens, ``(T, D)`` in each text encoder: here V*."""
        return [nn.Parameter(vector[None]) for vector in self.words(self.initializer)]

    def words(self, text: str) -> list[Tensor]:
        """Compute the mean embedding of a text's tokens in each text encoder, ``(D,)``."""
        return [
            initial_vector(tokenizer, encoder.get_input_embeddings().weight, text)
            for tokenizer, encoder in zip(self.backbone.tokenizers, self.backbone.text_encoders, strict=True)
        ]

    def acting(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context in which trained weights act, beside the tokens."""
        return contextlib.nullcontext()

    def installed(self) -> contextlib.AbstractContextManager[Any]:
        """Let the weights act in the backward pass as well, where checkpointed parts run again."""
        return self.acting()

    def stock(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context in which no trained weight acts."""
        return contextlib.nullcontext()

    @abstractmethod
    def learnt(self) -> dict[str, Tensor]:
        """Return the tensors that a file holds, as ``RivalConcept`` names them."""

    def prepare(
        self, data: ConceptData, device: torch.device, rank: int = 0, world_size: int = 1, num_steps: int = 0
    ) -> None:
        """Draw the class images with the stock model, and encode every view, once."""
        self.resolution = data.resolution
        self.backbone.to(device)
        noun = self.subject.class_noun
        if rank == 0:
            print(data.introduction(self.subject.concept, self.backbone.known_words), file=sys.stderr)
            warn_of_unknown(self.backbone.known_words, [noun])
        self.instance = encoded_views(self.backbone, data.instance_views(), self.cache_dir)
        self.prior = None
        if self.prior_loss_weight > 0:
            with self.stock(), torch.no_grad():
                images = data.class_photos or class_images(
                    self.backbone, noun, data.num_class_images, data.resolution, self.cache_dir
                )
            self.prior = encoded_views(self.backbone, data.class_views(images), self.cache_dir)
        self.class_text = self.backbone.encode_text([noun])

    def generators(self, batch: dict[str, Tensor], rank: int, world_size: int) -> list[Generator]:
        """Make one generator for each sample; its position counts over all processes."""
        return [step_generator(self.seed, int(batch["step"]), 0, position) for position in batch["position"].tolist()]

    def validation_generators(self, batch: Tensor, batch_idx: int) -> list[Generator]:
        """Make one generator for each draw; no training step uses the same."""
        return [step_generator(self.seed, draw, rank=-1) for draw in batch.tolist()]

    def losses(self, batch: dict[str, Tensor], generators: list[Generator]) -> dict[str, Tensor]:
        """Compute denoising errors of the photos and of as many class images, each ``(B,)``."""
        return self._losses(batch["index"], generators)

    def reduce(self, losses: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Add the losses, that of the class images with its weight."""
        means = {name: each.mean() for name, each in losses.items()}
        return self._whole(means), {"loss": self._whole(means), "instance_loss": means["instance_loss"]}

    def validate(self, batch: Tensor, generators: list[Generator]) -> dict[str, Tensor]:
        """Compute the same losses on fixed views and templates; the batch holds the numbers of draws ``(B,)``."""
        losses = self._losses(batch, generators)
        return {"loss": self._whole(losses), "instance_loss": losses["instance_loss"]}

    def _whole(self, losses: dict[str, Tensor]) -> Tensor:
        loss = losses["instance_loss"]
        return loss + self.prior_loss_weight * losses["prior_loss"] if "prior_loss" in losses else loss

    def _losses(self, index: Tensor, generators: list[Generator]) -> dict[str, Tensor]:
        number, index = len(generators), index.cpu()
        parts = (self.backbone.denoiser, *self.backbone.text_encoders)
        with self.acting(), weights_fetched_again(*parts):
            examples = self.photos(index, generators)
            if self.prior is not None:
                examples = examples.joined(self.class_photos(index))
                generators = [*generators, *generators]
            noised = self.backbone.corrupt(examples.latents, generators)
            prediction = self.backbone.denoise(noised, examples.text)
            errors = per_sample_mse(prediction, noised.target, examples.mask)
        prior = {"prior_loss": errors[number:]} if self.prior is not None else {}
        return {"instance_loss": errors[:number], **prior}

    def photos(self, index: Tensor, generators: list[Generator]) -> Examples:
        """Return views of the subject, each with a template that its generator draws; ``index`` is ``(B,)``."""
        templates = [int(torch.randint(len(self.prompts), (1,), generator=one)) for one in generators]
        latents, mask = (part[index % len(part)].to(self.device) for part in self.instance)
        return Examples(latents, mask, self.subject_text(templates))

    def class_photos(self, index: Tensor) -> Examples:
        """Return images of other members of the class."""
        assert self.prior is not None
        latents, mask = (part[index % len(part)].to(self.device) for part in self.prior)
        return Examples(latents, mask, self.class_text.rows([0] * len(index)))

    def subject_text(self, templates: Sequence[int]) -> Text:
        """Encode prompts with the subject, one row for each index of a template; each template is encoded once."""
        unique = sorted(set(templates))
        prompts = [self.backbone.as_read(self.prompts[index]) for index in unique]
        ids = [tokenize(tokenizer, prompts) for tokenizer in self.backbone.tokenizers]
        tokens = list(self.tokens)
        positions = torch.tensor([list(range(self.spans[at].start, self.spans[at].stop)) for at in unique])
        replaced = (
            embedded(self.backbone.text_encoders, tokens, positions[:, : len(tokens[0])] - ids[0].shape[1])
            if tokens
            else contextlib.nullcontext()
        )
        with replaced:
            text = self.backbone.encode_ids(ids)
        return text.rows([unique.index(index) for index in templates])

    def concept(self, record: TrainingRecord | None = None) -> RivalConcept:
        """Return the subject in its present state; ``record`` adds how it was trained."""
        told = {} if record is None else {"steps": str(record.steps), "training": self._settings(record)}
        learnt = {name: tensor.detach().float() for name, tensor in self.learnt().items()}
        return RivalConcept(learnt, {**self._metadata(), **told})

    def learnt_tokens(self) -> dict[str, Tensor]:
        """Return the embeddings of the phrase's first tokens, as files name them."""
        return {f"token.{index}": tokens for index, tokens in enumerate(self.tokens)}

    def _metadata(self) -> dict[str, str]:
        return {
            "method": self.method,
            "class_noun": self.subject.class_noun,
            "backbone": self.backbone.name,
            "backbone_hash": self.backbone.fingerprint,
            "backbone_content": self.backbone.content_hash,
            "references": self.subject.references,
            "seed": str(self.seed),
        }

    def _settings(self, record: TrainingRecord) -> str:
        trained = {"learning_rate": record.learning_rate, **record.rates, "prior_loss_weight": self.prior_loss_weight}
        return " ".join(f"{key}={value}" for key, value in trained.items())

    @property
    def members(self) -> Sequence["RivalLearner"]:
        """What learns the words of each subject: here this learner, of its only one."""
        return [self]

    def sample(self, requests: Sequence[Request], steps: int) -> list[Image.Image]:
        """Draw prompts with what was learnt so far; before the first step, with the plain class nouns."""
        nouns = {one.subject.concept: one.subject.class_noun for one in self.members}
        if steps == 0:
            requests = [Request(parse_prompt(request.prompt, nouns).plain, request.seed) for request in requests]
        sampling = {"resolution": self.resolution, **(self.sampling or {})}
        with self.stock():
            return self.draws(self.backbone, dict.fromkeys(nouns, self.concept()), sampling).sample(requests)

    def groups(self) -> list[dict[str, Any]]:
        """Group the parameters: weights, and embeddings of tokens without weight decay, which would shrink them."""
        tokens = [one for member in self.members for one in member.tokens if one.requires_grad]
        others = [one for one in self.averaged_parameters() if all(one is not token for token in tokens)]
        named: list[dict[str, Any]] = [
            {"name": "changes", "params": others},
            {"name": "modifier", "params": tokens, "weight_decay": 0.0},
        ]
        return [group for group in named if group["params"]]

    def export(self, record: TrainingRecord) -> dict[str, str]:
        """Write the concept, which is all that drawing needs of a training."""
        path, names = self.concept(record).save(self.export_path), [one.subject.concept for one in self.members]
        mentions = " and ".join(f"a <{name}>" for name in names)
        drawing = {"prompt": f"{mentions} on the beach", **{f"bank.{name}": path for name in names}}
        settings = {"num_images": 4, "seed": 0, "method": self.method, **self.backbone.overrides}
        following = command("generate.py", {**drawing, **settings})
        return {"concept bank": path, "next": following}


def stands_once(backbone: Backbone, noun: str) -> bool:
    """Whether all text encoders read a word at one place of a prompt, and the denoiser at this place alone.

    CLIP beside T5, as in SD3.5, FLUX and Hunyuan-DiT, reads it at another; a template around a prompt moves it.
    """
    asked = ("a <it>", {"it": noun})
    marked, rows = backbone.place(*asked)
    found = [concept_positions(tokenizer, *asked, backbone.as_read)[1] for tokenizer in backbone.tokenizers]
    alone = [tokenize(tokenizer, [backbone.as_read(marked.plain)]) for tokenizer in backbone.tokenizers]
    return all(one == rows for one in found) and all(map(torch.equal, backbone.token_ids([marked.plain]), alone))
