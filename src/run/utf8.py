"""UTF-8 in an entry point, whatever the locale: arguments, file names, output, and what libraries read and write."""

import locale
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any


def start_in_utf8(main: Callable[..., Any]) -> None:
    """Start this Python anew in its UTF-8 mode, if the locale has another encoding and ``main`` is the script's own.

    The mode cannot be switched on in a Python that runs. Processes that this one starts are in UTF-8, too.
    """
    is_utf8 = locale.getpreferredencoding(False).lower().replace("-", "") == "utf8"
    if is_utf8 or os.name != "posix" or main.__module__ != "__main__" or os.environ.get("PYTHONUTF8") == "1":
        return
    os.environ["PYTHONUTF8"] = "1"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def check_utf8(arguments: Sequence[str]) -> None:
    """Make sure that arguments are text.

    Raises:
        ValueError: If one was typed in another encoding.
    """
    for argument in arguments:
        try:
            argument.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{ascii(argument)} is not UTF-8; let your terminal write UTF-8, or give this argument in a file"
            ) from error
