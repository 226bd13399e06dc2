"""Draw prompts: ``python generate.py "prompt='a <rex> on the grass'" bank.rex=PATH``, or in a style, or with an LLM."""

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig

from src.run import cli
from src.run.cli import friendly, point
from src.run.recall import worth_noting
from src.run.targets import build


@friendly
@hydra.main(version_base="1.3", config_path="conf", config_name="generate")
@point
def main(cfg: DictConfig) -> None:
    """Compose, build, draw what is missing, show where it is."""
    # Seconds of imports, which a mistyped key need not wait for.
    from src.data.files import free_disk_or_raise
    from src.data.images import load_image
    from src.data.layout import read_layout
    from src.data.mentions import check_name, mentioned, parse_prompt
    from src.data.request import ImageStyle, Request, Style, TextStyle
    from src.eval.draw import draw_missing, measured_plan, write_grid
    from src.modules.backbones.conditioned import ConditionedPipeline, Pictures
    from src.run.first_looks import look_first

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
    folder = Path(cfg.output)
    # An image is at most what its raw pixels are: 3 MB a megapixel.
    free_disk_or_raise(folder, 2 * 3 * 2**20 * len(prompts) * cfg.num_images)
    generator = build(cfg.method)
    if pictures is not None:
        if not getattr(generator, "takes_pictures", False):
            raise ValueError("this method draws from text alone: leave image, mask and control out")
        generator.backbone.conditioned = ConditionedPipeline(generator.backbone, pictures)
    styles: list[Style | None] = [*map(ImageStyle, listed(cfg.style)), *map(TextStyle, listed(cfg.style_prompt))]
    places = [(prompt, cfg.seed + number) for prompt in prompts for number in range(cfg.num_images)]
    regions = {prompt: tuple(one for one in layout if one[0] in mentioned(prompt)) for prompt in prompts}
    requests = [Request(*place, style, layout=regions[place[0]]) for style in styles or [None] for place in places]
    if cfg.dry_run:
        cli.console.print(measured_plan(generator, requests, folder).plain(), highlight=False)
        return
    command = worth_noting(HydraConfig.get().overrides.task)
    paths = draw_missing(generator, requests, folder, command)
    write_grid(paths, requests, cfg.num_images, folder / "grid.png")
    cli.console.print(f"{len(paths)} images: {folder}", highlight=False)
    cli.console.print(f"grid: {folder / 'grid.png'}", highlight=False)


def listed(value: str | ListConfig | None) -> list[str]:
    """One, several or none, as a list."""
    return list(value) if isinstance(value, ListConfig) else [] if value is None else [value]


if __name__ == "__main__":
    main()
