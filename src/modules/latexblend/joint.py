"""LaTexBlend where image and text attend to both together (MM-DiTs): a concept as a change of its own rows alone.

The paper names diffusion transformers as open work. In joint attention each block changes the text, by the time and by
the image, so a concept has no keys and values that could be kept. Our reading of "latent textual space" there: a
concept is an offset of its rows where the text enters, and for each projection from text to keys or values a change of
low rank that acts on its own rows. All other rows keep the frozen projections, as in the base flow (Eq. 8), and two
concepts share no row, so their changes never meet in a projection.

Shapes: B samples, L text rows of a prompt, S rows of one concept, C width of text, C_l and D widths of a layer, r rank.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from src.modules.backbones.base import Backbone, Text
from src.modules.backbones.projections import text_projections
from src.modules.latexblend.bank import JointBank, Transform, phrases
from src.modules.latexblend.flows import LowRank, Reading
from src.modules.latexblend.isolation import isolated

RANK = 4
"""Rank of the changes where none is given: full ones would be as large as the layers."""


class JointDelta(nn.Module):
    """The trained parameters of a concept, in float32; it begins as no change at all.

    Args:
        projections: ``k.<layer>`` and ``v.<layer>`` to the projection, as ``text_projections`` returns.
        spread: Standard deviation of each feature of text, ``(C,)``; offsets are learnt in this unit.
        num_tokens: Number of rows S of the concept.
        reading: What the concept is.
        rank: Rank of the changes.
    """

    def __init__(
        self, projections: Mapping[str, nn.Linear], spread: Tensor, num_tokens: int, reading: Reading, rank: int
    ) -> None:
        super().__init__()
        self.spread, self.rank = spread.float(), rank
        self.modifier = nn.ParameterList([nn.Parameter(torch.zeros(num_tokens, len(spread)))])
        # Module names may not contain dots.
        changes: dict[str, nn.Module] = {
            name.replace(".", "/"): _Rows(num_tokens, linear.out_features)
            if reading == "constant"
            else LowRank(linear.out_features, linear.in_features, rank)
            for name, linear in projections.items()
            if reading != "offsets"
        }
        self.changes = nn.ModuleDict(changes)

    @property
    def offsets(self) -> Tensor:
        """What is added to the concept's rows where text enters, ``(S, C)``."""
        return self.modifier[0] * self.spread.to(self.modifier[0].device)

    def forward(self, name: str, hidden: Tensor) -> Tensor:
        """Compute what is added to one projection of rows ``(..., S or L, C_l)``: ``(..., D)``, in float32."""
        with torch.autocast(hidden.device.type, enabled=False):
            return self.changes[name.replace(".", "/")](hidden.float())

    def tensors(self) -> dict[str, Tensor]:
        """Return what a ``JointBank`` keeps."""
        found = {"text": self.offsets.detach()}
        for key, change in self.changes.items():
            for part, tensor in change.named_parameters():
                found[f"{part}.{key.replace('/', '.')}"] = tensor.detach()
        return found


class _Rows(nn.Module):
    """Rows that are added, whatever the text is; zero at the start."""

    def __init__(self, num_tokens: int, width: int) -> None:
        super().__init__()
        self.add = nn.Parameter(torch.zeros(num_tokens, width))

    def forward(self, hidden: Tensor) -> Tensor:
        return self.add.expand(*hidden.shape[:-2], -1, -1)


class JointFlow:
    """What is read while a concept is learnt: generic prompts whose rows of "a noun" are changed to the concept's.

    Args:
        backbone: The frozen model.
        class_noun: What the subject is, such as ``dog``.
        templates: Prompts with a place for "a noun", which stands in each of them.
        rank: Rank of the changes; None for ``RANK``.
        base_flow: Whether all other rows keep the frozen projections; False changes all rows in training.
        reading: What the concept is.

    Attributes:
        delta: All trained parameters.
        prompts: The templates, filled with "a noun".
        positions: Rows of "a noun" in the text of each prompt, ``(templates, S)``.

    Raises:
        ValueError: If the noun has no tokens of its own.
    """

    def __init__(
        self,
        backbone: Backbone,
        class_noun: str,
        templates: Sequence[str],
        rank: int | None = None,
        base_flow: bool = True,
        reading: Reading = "concept",
    ) -> None:
        self.backbone, self.reading = backbone, reading
        self.prompts, positions = phrases(backbone, class_noun, templates)
        self.positions = torch.tensor(positions)
        self.everywhere = not base_flow or reading == "all"
        text = backbone.encode_text(self.prompts).prompt_embeds.float()
        spread = text.flatten(0, 1).std(0)  # (C,)
        self.delta = JointDelta(backbone.text_layers(), spread, self.positions.shape[1], reading, rank or RANK)

    def projected_prompts(self, number: int, num_prior: int) -> None:
        """Return None: the layers project the prompts of all samples, which read each sample's image as well."""

    def read(
        self, text: Text, concept_at: Sequence[int], base_at: Sequence[int], faithful: bool = False
    ) -> tuple[Text, Transform]:
        """Return what the denoiser reads in a training step, and the transform of its keys and values.

        Args:
            text: Generic prompts of the first B samples, and after them those of prior images.
            concept_at: Not read: a concept is the same in every template.
            base_at: Index of each of the B samples' template.
            faithful: Not read: pooled text is that of the generic prompt.
        """
        number, length = len(base_at), text.prompt_embeds.shape[1]
        positions = self.positions[list(base_at)].to(text.prompt_embeds.device)  # (B, S)
        samples = torch.arange(number, device=positions.device)[:, None].expand_as(positions)
        offsets = self.delta.offsets.to(text.prompt_embeds).expand(number, -1, -1)  # (B, S, C)
        embeds = text.prompt_embeds.index_put((samples, positions), offsets, accumulate=True)
        first = 0 if self.everywhere else number  # Prior images are projected with the changes, as for UNets.

        def changed(name: str, hidden: Tensor, projected: Tensor) -> Tensor:
            if self.reading == "offsets":
                return projected
            if self.reading != "constant" and first < len(projected):
                # Behind the text of FLUX's single blocks stands the image.
                more = self.delta(name, hidden[first:, :length]).to(projected)
                more = F.pad(more, (0, 0, 0, projected.shape[1] - length, first, 0))
                projected = projected + more
            if self.everywhere and self.reading != "constant":
                return projected
            own = self.delta(name, hidden[samples, positions]).to(projected)  # (B, S, D)
            return projected.index_put((samples, positions), own, accumulate=True)

        return replace(text, prompt_embeds=embeds), changed

    def concept_rows(self, average: bool = False) -> dict[str, Tensor]:
        """Return what a bank keeps; there is no mean over templates to take."""
        return self.delta.tensors()


class JointText:
    """Writes concepts into the conditional rows of a batch: where text enters, and in each projection.

    Args:
        placements: For each prompt of the batch, the concepts that it mentions: a bank, its S rows, and a strength,
            which scales offsets and changes.
    """

    def __init__(self, placements: Sequence[Sequence[Any]]) -> None:
        self.number = len(placements)
        self.placed = [(row, *one) for row, each in enumerate(placements) for one in each if one.strength]
        banks = {id(bank): bank for _, bank, *_ in self.placed}.values()
        # Banks with changes of low rank, and the rank of each.
        self.ranks = {id(bank): len(down) for bank in banks if (down := _any(bank, "down.")) is not None}
        self.banks = [bank for bank in banks if id(bank) in self.ranks]
        self._factors: dict[str, tuple[Tensor, Tensor]] = {}
        self._rows: dict[int, tuple[Tensor, Tensor]] = {}
        self._size = (0, 0)

    @property
    def length(self) -> int:
        """Text rows L of the batch that entered last."""
        return self._size[1]

    @property
    def places(self) -> list[tuple[int, Sequence[int]]]:
        """Row of the batch, and text rows, of each concept."""
        return [(self._size[0] + row, positions) for row, _, positions, _ in self.placed]

    def enter(self, embeds: Tensor) -> Tensor:
        """Add the offsets to text ``(rows, L, C)``; conditional rows are the last ones, as in every stock pipeline.

        Raises:
            ValueError: If the batch is neither the prompts alone nor, for guidance, twice as many.
        """
        if len(embeds) not in (self.number, 2 * self.number):
            raise ValueError(f"concepts were placed for {self.number} prompts, but the denoiser got {len(embeds)} rows")
        if self._size != (size := (len(embeds) - self.number, embeds.shape[1])):
            self._size, self._rows = size, {}
        entered = embeds.clone()
        for row, bank, positions, strength in self.placed:
            entered[size[0] + row, positions] += strength * bank.rows["text"].to(entered)
        return entered

    def __call__(self, name: str, hidden: Tensor, projected: Tensor) -> Tensor:
        """Add the changes to one projection of text, ``(rows, L or more, D)``, in place: no layer has another copy."""
        for row, bank, positions, strength in self.placed:
            if (added := bank.rows.get(f"add.{name}")) is not None:
                at = torch.tensor([[self._size[0] + row] * len(positions), positions], device=projected.device)
                projected.index_put_(tuple(at), strength * added.to(projected), accumulate=True)
        if not self.banks:
            return projected
        # All K concepts together: two products do for any number of them.
        if name not in self._factors:
            downs, ups = ([bank.rows[f"{part}.{name}"].to(hidden) for bank in self.banks] for part in ("down", "up"))
            self._factors[name] = torch.cat(downs), torch.cat(ups, dim=1)  # (K r, C_l), (D, K r)
        down, up = self._factors[name]
        if (length := hidden.shape[1]) not in self._rows:
            self._rows[length] = self._changing(hidden)
        rows, shares = self._rows[length]
        change = F.linear(F.linear(hidden.flatten(0, 1).index_select(0, rows), down) * shares, up)  # (T, D)
        projected.view(-1, projected.shape[-1]).index_add_(0, rows, change.to(projected))
        return projected

    def _changing(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Find the T rows of the whole batch that change, ``(T,)``, and each one's shares of the changes, ``(T, K r)``.

        Behind the text of FLUX's single blocks stands the image, so a sample has more rows there.
        """
        rows: list[int] = []
        shares: list[list[float]] = []
        for row, bank, positions, strength in self.placed:
            if id(bank) not in self.ranks:
                continue
            own = range(self._size[1]) if bank.metadata.get("reading") == "all" else positions
            each = [strength if other is bank else 0.0 for other in self.banks for _ in range(self.ranks[id(other)])]
            rows += [(self._size[0] + row) * hidden.shape[1] + at for at in own]
            shares += [each] * len(own)
        return torch.tensor(rows, device=hidden.device), torch.tensor(shares).to(hidden)


def _any(bank: JointBank, start: str) -> Tensor | None:
    return next((tensor for name, tensor in bank.rows.items() if name.startswith(start)), None)


@contextlib.contextmanager
def joint_blended(
    denoiser: Any,
    placements: Sequence[Sequence[Any]],
    acts_below: float | None = None,
    acts_from: float = 0.0,
    isolate: Literal["text first", "image first"] | None = None,
) -> Iterator[None]:
    """While active, put concepts into the text that ``denoiser`` reads; afterwards it is bit for bit what it was.

    Args:
        denoiser: The transformer of any stock pipeline.
        placements: Concepts and positions of every prompt in the batch.
        acts_below: Timestep below which concepts act; None for all timesteps.
        acts_from: Lowest timestep at which concepts act.
        isolate: To keep other text from reading concepts (``isolated``), which stands first; None where it may.

    Raises:
        ValueError: If another such context is still open on this transformer.
    """
    if any(getattr(hook, "of_concepts", False) for hook in denoiser._forward_pre_hooks.values()):
        raise ValueError("this transformer already has concepts installed; leave that context first")
    text = JointText(placements)
    if not text.placed:
        yield
        return
    acting, guided = [False], [True]

    def before_denoiser(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        now = float(torch.as_tensor(kwargs["timestep"]).flatten()[0]) if acts_below is not None or acts_from else None
        in_time = now is None or acts_from <= now < (float("inf") if acts_below is None else acts_below)
        acting[0] = guided[0] and in_time
        if acting[0]:
            kwargs = {**kwargs, "encoder_hidden_states": text.enter(kwargs["encoder_hidden_states"])}
        return args, kwargs

    before_denoiser.of_concepts = True  # type: ignore[attr-defined]

    def after_projection(name: str) -> Any:
        return lambda module, inputs, output: text(name, inputs[0], output) if acting[0] else output

    handles = [denoiser.register_forward_pre_hook(before_denoiser, with_kwargs=True)]
    handles += [one.register_forward_hook(after_projection(name)) for name, one in text_projections(denoiser).items()]
    # Some pipelines call the transformer once with the prompt and once without, and say which in this context.
    stock = vars(denoiser).get("cache_context")
    if hasattr(denoiser, "cache_context"):
        denoiser.cache_context = _told(denoiser.cache_context, guided)
    read = lambda: (text.places if acting[0] else [], text.length)  # noqa: E731
    try:
        with isolated(denoiser, read, isolate == "text first") if isolate else contextlib.nullcontext():
            yield
    finally:
        for handle in handles:
            handle.remove()
        if hasattr(denoiser, "cache_context"):
            del denoiser.cache_context
            if stock is not None:
                denoiser.cache_context = stock


def _told(stock: Any, guided: list[bool]) -> Any:
    @contextlib.contextmanager
    def cache_context(name: str) -> Iterator[None]:
        guided[0] = name != "uncond"
        try:
            with stock(name):
                yield
        finally:
            guided[0] = True

    return cache_context


def refuse_what_reads_attention(
    keep_context: bool = False, rectification: bool = False, blending_guidance: Any = None, layout: Any = None
) -> None:
    """Refuse what is defined for cross-attention alone.

    Args:
        keep_context: Whether rows are added to a prompt's own.
        rectification: Whether scores of attention to concepts are changed.
        blending_guidance: Guidance by attention maps.
        layout: Places of concepts.

    Raises:
        ValueError: If one is asked for.
    """
    asked = {
        "method.keep_context=true": keep_context,
        "method.rectification": rectification,
        "method.blending_guidance": blending_guidance,
        "layout": layout,
    }
    if wrong := next((name for name, value in asked.items() if value), None):
        raise ValueError(
            f"{wrong} acts on the cross-attention of UNets, PixArt and the like, and this model attends to text and "
            "image together; leave it out"
        )
