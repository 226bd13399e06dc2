"""Calls to trackers may fail; a training must not."""

import sys
from collections.abc import Callable
from typing import Any


def notice(text: str) -> None:
    """One line to the user, beside the progress bar."""
    print(f"note: {text}", file=sys.stderr)


class Guard:
    """Runs calls whose failure must not stop a training; the first failure is announced, later ones are not.

    Args:
        what: Who is called, for the notice.
    """

    def __init__(self, what: str) -> None:
        self.what, self.failed = what, False

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What ``function`` returns, or None where it raises."""
        try:
            return function(*args, **kwargs)
        except Exception as error:
            if not self.failed:
                notice(f"{self.what} failed ({sentence_of(error)}); the training goes on and its CSV log is whole")
            self.failed = True
            return None


def sentence_of(error: Exception) -> str:
    """An error's kind and first line."""
    lines = str(error).strip().splitlines()
    return ": ".join([type(error).__name__, *lines[:1]])
