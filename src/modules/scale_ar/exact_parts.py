"""Models of which some parts stay in float32, whatever precision the rest is loaded in."""

from typing import Any

import torch
from diffusers.models.modeling_utils import ModelMixin


class PartlyExact(ModelMixin):
    """A diffusers model whose ``exact`` submodules and parameters are never rounded when it is loaded.

    Diffusers' own ``_keep_in_fp32_modules`` does the same, but only where accelerate is installed. Diffusers recognises
    a pipeline's part by the name ``ModelMixin`` in its module, so classes name that base once more.
    """

    exact: tuple[str, ...] = ()

    @classmethod
    def from_pretrained(cls, path: Any, **options: Any) -> "PartlyExact":
        """As of any diffusers model; ``dtype`` is that of the parts that may be rounded.

        Raises:
            ValueError: If weights and configuration do not fit; diffusers would fill in random ones.
        """
        dtype = options.pop("dtype", None) or options.pop("torch_dtype", None)
        try:
            model, loaded = super().from_pretrained(path, output_loading_info=True, **options)
        except ValueError as error:
            reason = str(error).split(". ")[0]
            raise ValueError(f"the weights in {path} do not fit the config.json beside them ({reason})") from error
        for what, names in (("lack", loaded["missing_keys"]), ("have, beside what fits,", loaded["unexpected_keys"])):
            if names:
                raise ValueError(f"the weights in {path} {what} {len(names)} tensors, such as {min(names)}")
        return model.in_precision(dtype or torch.float32)

    def in_precision(self, dtype: torch.dtype) -> "PartlyExact":
        """Round what may be rounded, in place."""
        for name, parameter in self.named_parameters():
            if not self.is_exact(name):
                parameter.data = parameter.data.to(dtype)
        return self

    def is_exact(self, name: str) -> bool:
        """Whether a parameter stays in float32."""
        return not set(self.exact).isdisjoint(name.split("."))

    @property
    def dtype(self) -> torch.dtype:
        """Of the parts that may be rounded."""
        return next(parameter.dtype for name, parameter in self.named_parameters() if not self.is_exact(name))
