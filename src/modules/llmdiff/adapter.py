"""LLMDiff-Adapter (Dong et al., ACM MM 2024, arXiv 2502.04412): all trained weights, and their installation in a UNet.

Shapes: B prompts, T terms per token, L tokens, D width of the language model, W width of the UNet's text, S tokens of
the base model's empty prompt.
"""

import contextlib
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from src.data.files import digest
from src.data.identity import warn_of_another
from src.data.schema import RefusedFileError, parsed
from src.modules.backbones.base import Text
from src.modules.backbones.unet import UNetBackbone
from src.modules.llmdiff.adapter_file import LLMDIFF_ADAPTER
from src.modules.llmdiff.aggregation import Aggregation, Generators
from src.modules.llmdiff.attention import (
    AdditionalAttention,
    JointProcessor,
    OriginalProcessor,
    cross_attentions,
    pack,
    processors_set,
)
from src.modules.llmdiff.encoder import LLMEncoder, TextStates
from src.modules.llmdiff.language_model import SAMPLED
from src.modules.llmdiff.options import AdapterOptions


class LLMDiffAdapter(nn.Module):
    """Aggregation of the language model's states, phi, and one additional cross-attention per layer of the UNet.

    At the start the additional attention adds nothing and phi gives the base model's empty prompt whatever the prompt
    (``phi_bias=rows``). The UNet then behaves, up to rounding, like the pretrained one with an empty prompt, for every
    prompt of at most S tokens.

    Args:
        unet: UNet whose layers the new ones are made for; it is neither kept nor changed.
        empty_prompt: The base model's text for the empty prompt, ``(1, S, W)``, and for SDXL its pooled text.
        width: Width D of the language model.
        num_terms: Number of terms T per token.
        options: Choices that the paper leaves open.

    Raises:
        ValueError: If the options do not fit the features, or the UNet's projections are fused.
    """

    def __init__(
        self,
        unet: nn.Module,
        empty_prompt: Text,
        width: int,
        num_terms: int,
        options: AdapterOptions | None = None,
    ) -> None:
        super().__init__()
        self.options = options or AdapterOptions()
        self.metadata: dict[str, str] = {}
        rows = empty_prompt.prompt_embeds[0].detach().float()  # (S, W)
        self.width, self.num_terms, self.text_width = width, num_terms, rows.shape[-1]
        self.aggregation = Aggregation(width, num_terms, self.options)
        self.phi = nn.Linear(width, self.text_width, bias=False)
        nn.init.normal_(self.phi.weight, std=self.options.phi_std)
        self.phi_bias = nn.Parameter(rows.clone() if self.options.phi_bias == "rows" else rows.mean(0, keepdim=True))
        self.bottleneck, context_width = self._context(width)
        # Module names may not contain dots.
        self.layers = nn.ModuleDict(
            {
                name.replace(".", "/"): AdditionalAttention(attention, context_width, self.options.branch_init)
                for name, attention in cross_attentions(unet).items()
            }
        )
        self.pooled = _pooled(width, empty_prompt.pooled_prompt_embeds)
        self.float()

    @classmethod
    def for_backbone(
        cls, backbone: UNetBackbone, encoder: LLMEncoder, options: AdapterOptions | None = None
    ) -> "LLMDiffAdapter":
        """Make a new adapter between a language model and a backbone."""
        adapter = cls(backbone.unet, backbone.encode_text([""]), encoder.width, encoder.num_terms, options)
        return adapter.to(backbone.device)

    def _context(self, width: int) -> tuple[nn.Module, int]:
        """Return the projection of c before the additional keys and values, and its output width."""
        if self.options.key_value == "phi":
            return nn.Identity(), self.text_width
        if self.options.bottleneck is None:
            return nn.Identity(), width
        return nn.Linear(width, self.options.bottleneck), self.options.bottleneck

    def forward(self, text: TextStates, generators: Generators = None) -> Text:
        """Turn states into the text that the UNet takes while the adapter is installed, in float32.

        The original attention sees ``max(L, S)`` positions, as a base model sees its padding; the additional one sees
        only the real tokens.

        Args:
            text: States from ``LLMEncoder.encode``.
            generators: Generators of the noise, see ``Aggregation.forward``.

        Returns:
            ``prompt_embeds``, a packed text (see ``attention.pack``), and for SDXL ``pooled_prompt_embeds``.
        """
        text = text.to(self.phi_bias.device)
        joined = self.aggregation(text.states, text.mask, generators)  # c, (B, L, D)
        missing = max(self.phi_bias.shape[0] - joined.shape[1], 0)
        tokens, mask = F.pad(joined, (0, 0, 0, missing)), F.pad(text.mask, (0, missing))
        position = torch.arange(tokens.shape[1], device=tokens.device)  # (max(L, S),)
        # phi(c), (B, max(L, S), W)
        projected = self.phi(tokens) + self.phi_bias[position.clamp(max=len(self.phi_bias) - 1)]
        context = tokens[..., :0] if self.options.key_value == "phi" else self.bottleneck(tokens)
        seen = mask | (position < len(self.phi_bias))
        pooled = None if self.pooled is None else self.pooled(self._pool(joined, text.mask))
        return Text(pack(projected, context, seen, mask), pooled)

    def _pool(self, joined: Tensor, mask: Tensor) -> Tensor:
        """Pool the tokens, ``(B, L, D) -> (B, D)``; padding is zero."""
        lengths = mask.sum(1)  # (B,)
        if self.options.pooling == "mean":
            return joined.sum(1) / lengths[:, None]
        return joined[torch.arange(len(joined), device=joined.device), lengths - 1]

    @contextlib.contextmanager
    def installed(self, unet: nn.Module, controlnet: nn.Module | None = None, strength: float = 1.0) -> Iterator[None]:
        """While active, let ``unet`` take this adapter's text; afterwards it is bit for bit what it was.

        LoRAs on the UNet act on the original attention. A ControlNet gets phi(c) as its text.

        Args:
            unet: The UNet that the adapter was made for.
            controlnet: A ControlNet, or several in one module, on the same text.
            strength: Share of the new attention, see ``JointProcessor``; 0 leaves the original attention with phi(c).

        Raises:
            ValueError: If the UNet has other layers, another adapter is on it, or ``strength`` is negative.
        """
        if strength < 0:
            raise ValueError(f"strength is {strength}; give 0 for the base, 1 for the adapter, or a number between")
        attentions = cross_attentions(unet)
        self._check_layers(attentions)
        processors = {
            attention: JointProcessor(attention.processor, self.text_width, self._layer(name), strength)
            for name, attention in attentions.items()
        }
        others = {} if controlnet is None else cross_attentions(controlnet)
        text_only = {other: OriginalProcessor(other.processor, self.text_width) for other in others.values()}
        with processors_set({**processors, **text_only}):
            yield

    def _layer(self, name: str) -> AdditionalAttention:
        layer = self.layers[name.replace(".", "/")]
        assert isinstance(layer, AdditionalAttention)
        return layer

    def _check_layers(self, attentions: Mapping[str, Attention]) -> None:
        expected = {name.replace("/", "."): self._layer(name).to_q.weight.shape for name in self.layers}
        given = {name: attention.to_q.weight.shape for name, attention in attentions.items()}
        if expected != given:
            wrong = sorted(name for name in expected.keys() | given.keys() if expected.get(name) != given.get(name))
            raise ValueError(
                f"this adapter was made for another UNet: {len(wrong)} cross-attention layers differ, first {wrong[0]}"
            )

    def content_hash(self) -> str:
        """Hash all weights."""
        return digest({name: tensor.detach().cpu() for name, tensor in self.state_dict().items()})

    def save(
        self,
        path: str | Path,
        encoder: LLMEncoder,
        backbone: UNetBackbone,
        num_steps: int,
        training: str | None = None,
    ) -> Path:
        """Write ``adapter.safetensors``: the weights, and which models they belong to.

        Args:
            path: File to write.
            encoder: Encoder that the adapter was trained with.
            backbone: Backbone that it was trained on.
            num_steps: Number of steps that it was trained for.
            training: The training's settings, for the record.

        Raises:
            RefusedFileError: If a weight is not finite.
        """
        metadata = {
            "llm": encoder.identity.name,
            "llm_revision": encoder.identity.revision,
            "llm_dtype": encoder.identity.dtype,
            "llm_width": str(self.width),
            "num_terms": str(self.num_terms),
            "encoding": json.dumps(asdict(encoder.options)),
            "adapter": json.dumps(asdict(self.options)),
            "backbone": backbone.name,
            "backbone_hash": backbone.fingerprint,
            "backbone_content": backbone.content_hash,
            "num_steps": str(num_steps),
            **({} if training is None else {"training": training}),
        }
        return LLMDIFF_ADAPTER.write(path, self.state_dict(), metadata)

    @classmethod
    def load(cls, path: str | Path, backbone: UNetBackbone) -> "LLMDiffAdapter":
        """Read an adapter for a backbone; the tensors of the file and those of the adapter must be the same.

        Raises:
            RefusedFileError: If the file is missing, damaged or no adapter, or was made for another UNet.
        """
        metadata, tensors = LLMDIFF_ADAPTER.read(path)
        if metadata["backbone_hash"] != backbone.fingerprint:
            raise RefusedFileError(
                f"{path} was made for the UNet of {metadata['backbone']} ({metadata['backbone_hash']}), but "
                f"{backbone.name} is {backbone.fingerprint}; give its backbone"
            )
        warn_of_another(metadata, backbone.content_hash, backbone.name, "the adapter")
        options = parsed(AdapterOptions, metadata["adapter"])
        width, num_terms = int(metadata["llm_width"]), int(metadata["num_terms"])
        pooled = tensors.get("pooled.bias")
        wanted = _text_widths(backbone)
        if wanted != (tensors["phi_bias"].shape[-1], 0 if pooled is None else pooled.numel()):
            raise RefusedFileError(
                f"{path} gives text of another width than the {wanted[0]} (pooled {wanted[1]}) of {backbone.name}"
            )
        empty_prompt = Text(tensors["phi_bias"][None], None if pooled is None else pooled[None])
        with torch.device("meta"), warnings.catch_warnings(action="ignore"):
            # Shapes are compared before anything of the size that the file asks for is made.
            adapter = cls(backbone.unet, empty_prompt, width, num_terms, options)
        _load_tensors(adapter, tensors, path)
        adapter.metadata = metadata
        return adapter.to(backbone.device).requires_grad_(False).eval()

    def check_encoder(self, encoder: LLMEncoder) -> None:
        """Make sure that an encoder gives the states that this adapter was trained on.

        Another precision of the language model changes images a little, which is only a warning.

        Raises:
            ValueError: If the width, the number of states or, for an adapter from a file, the language model differs.
        """
        if (encoder.width, encoder.num_terms) != (self.width, self.num_terms):
            raise ValueError(
                f"{encoder.identity.name} gives {encoder.num_terms + 1} states of width {encoder.width} per token, but "
                f"this adapter takes {self.num_terms + 1} of width {self.width}; give the language model and the "
                "encoding options that it was trained with"
            )
        trained = self.metadata
        if trained and len(trained["llm_revision"]) == SAMPLED:
            logging.getLogger(__name__).warning(
                "the adapter was written by an earlier version, which noted its language model %s in another way; make "
                "sure that %s is the same",
                trained["llm"],
                encoder.identity.name,
            )
        elif trained and trained["llm_revision"] != encoder.identity.revision:
            raise ValueError(
                f"this adapter was trained with {trained['llm']} ({trained['llm_revision']}), but "
                f"{encoder.identity.name} is {encoder.identity.revision}; give the same language model"
            )
        if trained and trained["llm_dtype"] != encoder.identity.dtype:
            logging.getLogger(__name__).warning(
                "the adapter was trained with a language model in %s, but this one runs in %s",
                trained["llm_dtype"],
                encoder.identity.dtype,
            )


def _text_widths(backbone: UNetBackbone) -> tuple[int, int]:
    """Width of the text that a UNet takes, and of its pooled text; 0 for none."""
    width, unet = next(iter(backbone.text_layers().values())).in_features, backbone.unet
    if unet.config.addition_embed_type != "text_time":
        return width, 0
    return width, unet.add_embedding.linear_1.in_features - 6 * unet.config.addition_time_embed_dim


def _pooled(width: int, empty: Tensor | None) -> nn.Linear | None:
    """Make the projection to SDXL's pooled text, which at the start is that of the empty prompt."""
    if empty is None:
        return None
    pooled = nn.Linear(width, empty.shape[-1])
    nn.init.zeros_(pooled.weight)
    with torch.no_grad():
        pooled.bias.copy_(empty[0])
    return pooled


def _load_tensors(adapter: LLMDiffAdapter, tensors: Mapping[str, Tensor], path: str | Path) -> None:
    expected = {name: tensor.shape for name, tensor in adapter.state_dict().items()}
    given = {name: tensor.shape for name, tensor in tensors.items()}
    fitting = sum(given.get(name) == shape for name, shape in expected.items())
    if expected != given:
        wrong = sorted(name for name in expected.keys() | given.keys() if expected.get(name) != given.get(name))
        raise RefusedFileError(
            f"only {fitting} of the {len(given)} tensors in {path} fit the adapter's {len(expected)}; the first that "
            f"does not is {wrong[0]}"
        )
    adapter.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    logging.getLogger(__name__).info("%d tensors of %s applied", fitting, path)
