"""Inject another prompt in one pass of a scale-wise generation: the stepwise study of arXiv 2507.04482, Fig. 2."""

from collections.abc import Sequence

import torch
from PIL import Image

from src.data.ranges import BatchSize, Number, Sampling
from src.data.request import Identity, Request, TextStyle
from src.modules.generator import BatchedGenerator, check_names
from src.modules.next_scale.loop import Condition, Generation
from src.modules.next_scale.memory import Paths
from src.modules.next_scale.pipeline import CallSettings, NextScalePipeline, model_identity

BASE, INJECTED = "base", "injected"


class PromptInjection:
    """Hook that gives one pass the text of the batch's other half; all other passes keep their own text.

    Args:
        at: The pass, counted from 0. The batch holds base prompts, then as many injected ones; for pass 0, injected
            prompts come first. The second half is dropped after the first pass.
        routes: Names of the condition's tensors that change, ``mask`` together with ``keys``; None for all.

    Raises:
        ValueError: When the pass begins, if the condition has no such tensor.
    """

    def __init__(self, at: int, routes: Sequence[str] | None = None) -> None:
        self.at, self.routes = at, routes

    def __call__(self, scale_index: int, generation: Generation) -> None:
        """Choose the text of the next pass."""
        if scale_index == 0:
            number = generation.images // 2
            rows = torch.arange(len(next(iter(generation.condition.values())))).unflatten(0, (-1, 2, number))
            own, other = (generation.condition.rows(rows[:, half].flatten()) for half in (0, 1))
            self.base, self.injected = (other, own) if self.at == 0 else (own, other)
            generation.keep_images(number)
        generation.condition = self._mixed() if scale_index + 1 == self.at else self.base

    def paths(self, images: int) -> Paths:
        """Return the paths of a batch: half of its images are dropped."""
        return Paths(images // 2)

    def _mixed(self) -> Condition:
        check_names("method.routes", self.routes or (), self.injected)
        # The mask says which keys are padding, so it changes with the keys.
        routes = {*(self.routes or self.injected)} | ({"mask"} if "keys" in (self.routes or ()) else set())
        return Condition(self.base | {name: self.injected[name] for name in routes & self.injected.keys()})


class InjectionGenerator(BatchedGenerator[Request]):
    """Draws base prompts, and in one pass gives the model the words of each request's style instead.

    Args:
        backbone: An ``InfinityPipeline`` or a ``SwittiPipeline``; it stays as it is.
        inject_at: The pass, counted from 0; ``base`` for no pass, ``injected`` for all.
        routes: Names of the tensors that change, see ``PromptInjection``; in pass 0 all of them do.
        sampling: Further arguments of the pipeline; None stands for the model's own value.
        batch_size: Number of images drawn at a time.

    Raises:
        ValueError: If there is no such pass, or an option is impossible.
    """

    def __init__(
        self,
        backbone: NextScalePipeline,
        inject_at: Number | str = BASE,
        routes: Sequence[str] | None = None,
        sampling: Sampling | None = None,
        batch_size: BatchSize = 16,
    ) -> None:
        if inject_at not in (BASE, INJECTED, *range(backbone.num_scales)):
            raise ValueError(
                f"inject_at is {inject_at!r}; give a pass from 0 to {backbone.num_scales - 1}, {BASE} for none or "
                f"{INJECTED} for all"
            )
        super().__init__(batch_size)
        self.backbone, self.inject_at, self.routes = backbone, inject_at, routes
        self.settings = CallSettings(backbone, sampling or {})
        self.model_identity = model_identity(backbone)
        backbone.set_progress_bar_config(disable=True)

    def identity(self, prompt: str | None = None) -> Identity:
        """Return what an image depends on beside text, seed and style; ``reference.`` marks what only styles need."""
        return {
            "backbone": self.model_identity,
            "sampling": str(self.settings),
            "reference.injection": f"{self.inject_at} {self.routes}",
        }

    def prepare(self, request: Request) -> Request:
        """Check a request, and return it.

        Raises:
            ValueError: If it names no words to inject, or a prompt is too long for the text encoder.
        """
        if not isinstance(request.style, TextStyle):
            raise ValueError(f"the request {request.prompt!r} needs words to inject, as style=TextStyle(...)")
        self.backbone.check_prompts([request.prompt, request.style.words])
        return request

    def draw(self, batch: Sequence[Request]) -> list[Image.Image]:
        """Draw one batch."""
        base = [request.prompt for request in batch]
        injected = [request.style.words for request in batch if isinstance(request.style, TextStyle)]
        seeds = [request.seed for request in batch]
        prompts, hooks = injected if self.inject_at == INJECTED else base, []
        if isinstance(self.inject_at, int):
            prompts = injected + base if self.inject_at == 0 else base + injected
            seeds, hooks = seeds + seeds, [PromptInjection(self.inject_at, self.routes)]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return self.backbone(
            prompts, generator=generators, callback_on_scale_end=hooks, **self.settings.arguments
        ).images
