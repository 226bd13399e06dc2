"""What can be read off a picture that is drawn: where its concepts looked, and how near it comes to words and photos.

Shapes: R rows of a pass, N cells of a feature map, L tokens, S side of a map.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from src.data.images import load_folder, load_image
from src.data.mentions import mentioned, parse_prompt
from src.eval.profile import Profile
from src.modules.latexblend.attention import MAX_CELLS, attention_grid, recorded_attention
from src.modules.latexblend.joint_attention import recorded_joint_attention
from src.run.desk.drawer import CancelledError, Drawer
from src.run.desk.watching import watched
from src.run.drawing import Call
from src.run.targets import CONF, build

SIDE = 32
MOST_REFERENCES = 10


class Reading:
    """Reads pictures with the models of a drawer, and with encoders of its own.

    Args:
        drawer: Draws; its models are used.
        cache_dir: Where embeddings of photos are kept.
        metrics: Name of the profile of scores, a file of ``conf/metrics``.
    """

    def __init__(self, drawer: Drawer, cache_dir: str, metrics: str = "world") -> None:
        self.drawer, self.cache_dir, self.metrics = drawer, cache_dir, metrics
        self._profile: Profile | None = None

    def attention(self, words: Sequence[str]) -> dict[str, Any]:
        """Draw a picture once more, and average where each of its concepts is attended to.

        Args:
            words: Arguments of generate.py.

        Returns:
            ``maps``: name of a concept to S x S levels, from 0 where it is looked for least to 255; ``side``, S.

        Raises:
            ValueError: If the method blends no concepts, or the prompt names none.
        """
        cfg, _ = self.drawer.composed(words)
        call = Call.read(cfg)
        generator: Any = call.conditioned(self.drawer.parts.generator(cfg.method))
        placed = generator.prepare(call.requests[0])
        names = [name for name in mentioned(call.requests[0].prompt) if name in cfg.bank]
        concepts = getattr(placed, "concepts", None)
        if not concepts or not names:
            raise ValueError("attention is shown of concepts that method=latexblend blends: name one, such as <rex>")
        sums = {name: torch.zeros(SIDE, SIDE) for name in names}
        # One placement for each mention, in the order of the prompt; a concept may be mentioned twice.
        order = _names_in_order(call.requests[0].prompt, names)
        side = int(generator.sampling["resolution"] / generator.backbone.pipeline.vae_scale_factor)
        backbone: Any = generator.backbone
        recorded = (
            recorded_joint_attention(backbone.denoiser, backbone.joint == "text first")
            if backbone.joint
            else recorded_attention(backbone.denoiser)
        )
        with recorded as maps:

            def on_step(share: float, _: object) -> None:
                if self.drawer.is_cancelled():
                    raise CancelledError
                if not maps:
                    raise ValueError(
                        f"attention is shown on up to {MAX_CELLS} cells, and at this size each layer of this model has "
                        "more; add method.sampling.resolution=512"
                    )
                for name, placement in zip(order, concepts, strict=True):
                    for layer in maps.values():
                        if layer.shape[-1] <= max(placement.positions):
                            continue  # A pass of its own without the prompt, as Qwen-Image takes it.
                        sums[name] += _on_grid(layer[-1], placement.positions, side)

            with watched(generator, on_step):
                generator.sample(call.requests)
        found = {name: _levels(each) for name, each in sums.items()}
        return {"maps": {name: each.flatten().tolist() for name, each in found.items()}, "side": SIDE}

    @torch.no_grad()
    def numbers(self, picture: str, text: str, references: Mapping[str, str]) -> dict[str, Any]:
        """Score a picture with the profile: CLIP-T with the plain prompt, DINO with the photos of each concept.

        Args:
            picture: Name of the file in the drawer's folder.
            text: Prompt with class nouns for concepts.
            references: Name of a concept to the folder of its photos.

        Returns:
            ``clip_t`` and ``dino``, the latter by concept; ``profile``, without which no number means anything.
        """
        profile = self.profile
        images = [load_image(self.drawer.folder / picture, min_side=1)]
        clip_t = profile.text_score(profile.clip.encode_images(images), profile.clip.encode_texts([text]))
        drawn = profile.dino.encode_images(images)
        dino = {
            name: float(profile.image_score(drawn, profile.dino.encode_images(load_folder(folder)[:MOST_REFERENCES])))
            for name, folder in references.items()
        }
        return {"clip_t": float(clip_t), "dino": dino, "profile": profile.name}

    @property
    def profile(self) -> Profile:
        """The profile, loaded when it is first needed."""
        if self._profile is None:
            with initialize_config_dir(str(CONF), version_base="1.3"):
                cfg = compose("eval", [f"metrics={self.metrics}", f"paths.cache_dir={self.cache_dir}"])
            self._profile = build(cfg.metrics)
        return self._profile


def _names_in_order(prompt: str, names: Sequence[str]) -> list[str]:
    return [mention.name for mention in parse_prompt(prompt, dict.fromkeys(names, "subject")).mentions]


def _levels(attention: Tensor) -> Tensor:
    """Stretch a map to levels from 0 to 255: a word is attended to a little everywhere."""
    above = attention - attention.min()
    return (255 * above / above.max().clamp_min(1e-9)).round().int()


def _on_grid(attention: Tensor, positions: Sequence[int], side: int) -> Tensor:
    """Put the attention of every cell to some tokens, ``(N, L)``, on a square of ``SIDE`` cells a side.

    Args:
        attention: A layer's map.
        positions: Tokens of a concept.
        side: Side of the latents.
    """
    rows, columns = attention_grid(len(attention), (side, side))
    summed = attention[:, list(positions)].sum(-1).detach().float().cpu().view(1, 1, rows, columns)
    return F.interpolate(summed, size=(SIDE, SIDE), mode="bilinear", align_corners=False)[0, 0]
