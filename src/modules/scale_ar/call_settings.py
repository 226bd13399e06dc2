"""What a generator of requests calls its pipeline with, the same for every image."""

import inspect
from collections.abc import Mapping
from typing import Any

from diffusers import DiffusionPipeline

from src.modules.own_sampling import check_names

OF_A_REQUEST = ("prompt", "num_images_per_prompt", "generator", "output_type", "return_dict", "callback_on_scale_end")
"""Arguments that the generator gives itself."""


class CallSettings:
    """Arguments of a pipeline's call beside those of a request.

    Args:
        pipeline: That is called.
        given: Name to value; None is the model's own.

    Raises:
        ValueError: If the call has no such argument, or the generator gives it itself.
    """

    def __init__(self, pipeline: DiffusionPipeline, given: Mapping[str, Any]) -> None:
        parameters = inspect.signature(type(pipeline).__call__).parameters
        check_names("method.sampling", given, [name for name in parameters if name not in ("self", *OF_A_REQUEST)])
        own = pipeline.sampling
        self.arguments = {name: own.get(name) if value is None else value for name, value in given.items()}
        self._of_model = pipeline.config.sampling or {}

    def __str__(self) -> str:
        """Everything that was set, by the method or of the model, in one line."""
        settings = {**self._of_model, **self.arguments}
        return " ".join(f"{name}={value}" for name, value in sorted(settings.items()))
