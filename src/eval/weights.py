"""Weights that a library fetches by itself: what can go wrong there is one sentence."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def fetching(name: str, otherwise: str = "") -> Iterator[None]:
    """Wrap the construction of a network with its weights.

    Args:
        name: What is loaded.
        otherwise: Advice besides fetching.

    Raises:
        ValueError: If the weights cannot be had.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        # The hub goes on about connections in further sentences.
        reason = str(error).partition("\n")[0].partition(". Please")[0].partition(". Last error")[0].rstrip(".")
        raise ValueError(f"cannot load {name}: {reason}; get its weights once with a network{otherwise}") from error
