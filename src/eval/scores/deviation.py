"""How far a customised denoising process leads from that of the plain model: in a step, on the way, in the picture."""

import torch
from torch import Tensor


def stepwise_deviation(noise: Tensor, plain: Tensor) -> Tensor:
    """Mean over steps of ``||eps - eps_0||^2 / ||eps_0||^2``, both predicted at the plain model's latents.

    Where a model predicts velocity, as under flow matching, eps is that.

    Args:
        noise: What the customised model predicts there, ``(T, B, C, h, w)``.
        plain: What the plain model predicts, ``(T, B, C, h, w)``.

    Returns:
        Shape ``(B,)``, 0 or more.
    """
    return ((noise - plain).square().flatten(2).sum(2) / plain.square().flatten(2).sum(2)).mean(0)


def trajectory_deviation(latents: Tensor, plain: Tensor) -> Tensor:
    """Mean over steps of ``||z_t - z_t,0|| / ||z_t,0||``, each model on its own way from the same noise.

    Args:
        latents: The customised model's latents, ``(T + 1, B, C, h, w)``; the first ones, pure noise, do not count.
        plain: The plain model's, ``(T + 1, B, C, h, w)``.

    Returns:
        Shape ``(B,)``, 0 or more.
    """
    away, size = (latents - plain)[1:].flatten(2).norm(dim=2), plain[1:].flatten(2).norm(dim=2)
    return (away / size).mean(0)


def structure_deviation(cells: Tensor, plain: Tensor) -> Tensor:
    """Root mean square difference of two pictures' self-similarity, which says what is laid out how, not what it is.

    The self-similarity of a picture (Tumanyan et al., CVPR 2022, arXiv 2201.00424) holds the cosine of each cell with
    each other one.

    Args:
        cells: Unit embeddings of P cells of the customised model's pictures, ``(B, P, D)``.
        plain: The same of the plain model's pictures, ``(B, P, D)``.

    Returns:
        Shape ``(B,)``, in [0, 2].
    """
    ours, theirs = (torch.einsum("bpd,bqd->bpq", each, each) for each in (cells, plain))
    return (ours - theirs).square().flatten(1).mean(1).sqrt()
