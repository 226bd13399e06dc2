"""Whether a run's W&B log can go online: is there a key, and does the host answer in time?

Left to itself W&B stops a run that has no key, and waits 100 seconds for a host that it cannot reach.
"""

import netrc
import os
import threading
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

# Keys of the public host are filed under this name, whichever of its names is called.
PUBLIC_HOST = "api.wandb.ai"


def choose_mode(base_url: str, configured: str, seconds: float) -> tuple[str, str | None]:
    """How to start W&B.

    Args:
        base_url: Of the host.
        configured: What W&B's own settings say; ``online`` where nobody has said anything.
        seconds: How long the host may take to answer.

    Returns:
        A mode of ``wandb.init``, and the reason where it had to be ``offline``. What the user asked for, with
        ``WANDB_MODE`` or ``wandb offline``, is taken as it is.
    """
    if "WANDB_MODE" in os.environ or configured != "online":
        return os.environ.get("WANDB_MODE", configured), None
    if not has_api_key(base_url):
        return "offline", "no API key is set"
    if not answers(base_url, seconds):
        return "offline", f"{base_url} did not answer within {seconds:g} s"
    return "online", None


def has_api_key(base_url: str) -> bool:
    """Whether the environment or netrc holds a key for the host."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        found = netrc.netrc(os.environ.get("NETRC") or Path.home() / ".netrc")
    except (OSError, netrc.NetrcParseError):
        return False
    return any(found.authenticators(host) for host in (urlsplit(base_url).netloc, PUBLIC_HOST))


def answers(url: str, seconds: float) -> bool:
    """Whether a host sends any HTTP response, short of a server error, within so many seconds."""
    heard = threading.Event()
    # In a thread, since no time-out covers the look-up of a name.
    call = threading.Thread(target=_call, args=(url, seconds, heard), daemon=True)
    call.start()
    call.join(seconds)
    return heard.is_set()


def _call(url: str, seconds: float, heard: threading.Event) -> None:
    try:
        with urlopen(url, timeout=seconds):
            heard.set()
    except HTTPError as error:
        if error.code < 500:
            heard.set()
    except (OSError, ValueError):
        return
