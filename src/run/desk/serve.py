"""Start the desk: its address, its token, its banks, and a browser where there is one."""

import os
import secrets
import socket
import sys
import threading
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from src.run import cli
from src.run.recall import key_of

TRIES = 50


def serve(cfg: DictConfig, words: Sequence[str], backbone: str) -> None:
    """Answer until Ctrl-C.

    Args:
        cfg: The configuration of desk.py.
        words: The arguments that were typed, as Hydra got them.
        backbone: Name of the backbone's configuration.

    Raises:
        ValueError: If no port is free.
        ImportError: If the extra is not installed.
    """
    import uvicorn

    from src.run.desk.app import Start, application

    host, local = str(cfg.desk.host), str(cfg.desk.host) in ("127.0.0.1", "localhost", "::1")
    listening, port = bound(host, int(cfg.desk.port))
    if port != cfg.desk.port:
        cli.console.print(f"port {cfg.desk.port} is taken; this desk takes {port}", highlight=False)
    token = None if local else secrets.token_urlsafe(16)
    own = ("prompt", "bank", "desk", "paths", "hydra", "output", "name", "num_images", "seed", "dry_run")
    start = Start(
        root=Path(cfg.paths.root),
        base=[word.lstrip("+") for word in words if key_of(word).partition(".")[0].partition("/")[0] not in own],
        banks={str(name): str(path) for name, path in cfg.bank.items()},
        backbone=backbone,
        folders=list(cfg.desk.folders),
        cache_dir=str(cfg.paths.cache_dir),
        prompt=cfg.prompt if isinstance(cfg.prompt, str) else None,
        token=token,
    )
    app, _ = application(start)
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{port}/" + (f"?token={token}" if token else "")
    cli.console.print(f"the desk is at {address}   (Ctrl-C ends it)", highlight=False)
    if cfg.desk.open and local and _has_browser():
        threading.Timer(1.0, webbrowser.open, [address]).start()
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=3, lifespan="on")
    uvicorn.Server(config).run(sockets=[listening])


def bound(host: str, port: int) -> tuple[socket.socket, int]:
    """Listen at a port, or at the next free one.

    Returns:
        The socket, and its port.

    Raises:
        ValueError: If none of the next fifty is free, or this machine has no such address.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for each in range(port, min(port + TRIES, 65536)):
        listening = socket.socket(family, socket.SOCK_STREAM)
        if sys.platform != "win32":
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, each))
            listening.listen(128)
        except OSError as error:
            listening.close()
            if isinstance(error, socket.gaierror) or "assign" in str(error):
                raise ValueError(f"desk.host is {host}, which is no address of this machine; give 127.0.0.1") from error
            continue
        listening.set_inheritable(False)
        return listening, listening.getsockname()[1]
    raise ValueError(f"no port from {port} to {port + TRIES - 1} is free; give another with desk.port=NUMBER")


def _has_browser() -> bool:
    """Whether a browser can open a window here; one in the terminal would take it over."""
    return sys.platform in ("darwin", "win32") or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
