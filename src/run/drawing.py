"""What a command of generate.py asks for: the desk draws its cells by the same."""

from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, ListConfig

from src.data.images import load_image
from src.data.layout import read_layout
from src.data.mentions import check_name, mentioned, parse_prompt
from src.data.request import Generator, ImageStyle, Request, Style, TextStyle
from src.modules.backbones.conditioned import ConditionedPipeline, Pictures
from src.run.first_looks import look_first


@dataclass(frozen=True)
class Call:
    """Requests of one configuration, and the pictures that they start from.

    Attributes:
        requests: One for each style, prompt and seed, in this order.
        pictures: None where pictures are drawn from text alone.
    """

    requests: list[Request]
    pictures: Pictures | None

    @classmethod
    def read(cls, cfg: DictConfig) -> "Call":
        """Look at all that a command names, before a model is read.

        Raises:
            ValueError: If there is nothing to draw, or something that could not be drawn.
        """
        if not cfg.prompt:
            raise ValueError("nothing to draw: give a prompt, such as \"prompt='a <rex> on the grass'\" bank.rex=PATH")
        prompts = listed(cfg.prompt)
        nouns = dict.fromkeys(cfg.bank, "subject")
        for name in nouns:
            check_name(name, "the name of a bank")
        # Before the model is read: without banks a method may take <name> as it stands.
        marked = [parse_prompt(prompt, nouns) for prompt in prompts if nouns]
        named = {mention.name for prompt in marked for mention in prompt.mentions}
        unused = [name for name in nouns if name not in named]
        if unused:
            raise ValueError(
                f"bank.{unused[0]} is given, but no prompt names it: write <{unused[0]}> where it should stand"
            )
        layout = read_layout(dict(cfg.layout), nouns)
        look_first(cfg)
        for path in listed(cfg.style):
            load_image(path)
        pictures = Pictures.read(cfg.image, cfg.strength, cfg.mask, cfg.control)
        styles: list[Style | None] = [*map(ImageStyle, listed(cfg.style)), *map(TextStyle, listed(cfg.style_prompt))]
        places = [(prompt, cfg.seed + number) for prompt in prompts for number in range(cfg.num_images)]
        regions = {prompt: tuple(one for one in layout if one[0] in mentioned(prompt)) for prompt in prompts}
        requests = [Request(*place, style, layout=regions[place[0]]) for style in styles or [None] for place in places]
        return cls(requests, pictures)

    def conditioned(self, generator: Any) -> Generator:
        """Let a generator start from the pictures of this call, or from none.

        Raises:
            ValueError: If there are some, and the method draws from text alone.
        """
        takes = getattr(generator, "takes_pictures", False)
        if self.pictures is not None and not takes:
            raise ValueError("this method draws from text alone: leave image, mask and control out")
        if takes:
            backbone = generator.backbone
            backbone.conditioned = self.pictures and ConditionedPipeline(backbone, self.pictures)
        return generator


def listed(value: str | ListConfig | None) -> list[str]:
    """One, several or none, as a list."""
    return list(value) if isinstance(value, ListConfig) else [] if value is None else [value]
