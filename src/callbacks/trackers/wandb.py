"""Lightning's W&B logger, changed so that it never stops or hangs a run and writes only to the run's folder."""

import json
import netrc
import os
import re
import shlex
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

from lightning.fabric.loggers.logger import _DummyExperiment, rank_zero_experiment
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from src.data.ranges import Weight

GLOBAL_STEP = "trainer/global_step"


def notice(text: str) -> None:
    """Print one line for the user, beside the progress bar."""
    print(f"note: {text}", file=sys.stderr)


class Guard:
    """Runs calls whose failure must not stop a training; the first failure is announced, later ones are not.

    Args:
        what: Name of what is called, for the notice.
    """

    def __init__(self, what: str) -> None:
        self.what, self.failed = what, False

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return what ``function`` returns, or None if it raises."""
        try:
            return function(*args, **kwargs)
        except Exception as error:
            if not self.failed:
                notice(f"{self.what} failed ({sentence_of(error)}); the training goes on and its CSV log is whole")
            self.failed = True
            return None


def sentence_of(error: Exception) -> str:
    """Return an error's kind and first line."""
    lines = str(error).strip().splitlines()
    return ": ".join([type(error).__name__, *lines[:1]])


# API keys of the public host are stored under this name, whichever of its names is used.
PUBLIC_HOST = "api.wandb.ai"


def choose_mode(base_url: str, configured: str, seconds: float) -> tuple[str, str | None]:
    """Choose how to start W&B.

    Args:
        base_url: Address of the host.
        configured: Mode in W&B's own settings; ``online`` if nobody has set one.
        seconds: How long the host may take to answer.

    Returns:
        A mode of ``wandb.init``, and the reason if it had to be ``offline``. A mode that the user set, with
        ``WANDB_MODE`` or ``wandb offline``, is kept.
    """
    if "WANDB_MODE" in os.environ or configured != "online":
        return os.environ.get("WANDB_MODE", configured), None
    if not has_api_key(base_url):
        return "offline", "no API key is set"
    if not answers(base_url, seconds):
        return "offline", f"{base_url} did not answer within {seconds:g} s"
    return "online", None


def has_api_key(base_url: str) -> bool:
    """Tell whether the environment or netrc holds a key for the host."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        found = netrc.netrc(os.environ.get("NETRC") or Path.home() / ".netrc")
    except (OSError, netrc.NetrcParseError):
        return False
    return any(found.authenticators(host) for host in (urlsplit(base_url).netloc, PUBLIC_HOST))


def answers(url: str, seconds: float) -> bool:
    """Tell whether a host sends any HTTP response but a server error within so many seconds."""
    heard = threading.Event()
    # It runs in a thread, because no time-out covers the look-up of a name.
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


# In seconds. W&B's own are 90, none, and 15, which a kill would cost. What was not uploaded in time stays on disk for
# `wandb sync`.
SECONDS = {"WANDB_INIT_TIMEOUT": "30", "WANDB_FINISH_TIMEOUT": "120", "WANDB__TRANSACTION_LOG_FLUSH_INTERVAL": "1"}


def history_of(folder: Path, run_id: str) -> list[dict[str, Any]]:
    """Read what earlier starts of a run logged, row by row, with W&B's own reader; of a killed one what it had written.

    Args:
        folder: W&B's folder in the run folder.
        run_id: The run.
    """
    rows = []
    for path in sorted(folder.glob(f"*run-*-{run_id}/run-{run_id}.wandb")):
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
        shown = subprocess.run(command, capture_output=True, encoding="utf-8", check=False).stdout
        records = [json.loads(line) for line in shown.splitlines() if line.startswith("{")]
        rows += [record["history"]["item"] for record in records if record["type"] == "history"]
    return rows


def last_steps(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Last step at which rows hold each metric; one that is no number is in a row by its parts, such as ``a.path``."""
    found: dict[str, int] = {}
    for row in rows:
        for key in row if GLOBAL_STEP in row else ():
            parts = key.split(".")
            found |= {".".join(parts[:end]): int(row[GLOBAL_STEP]) for end in range(1, len(parts) + 1)}
    return found


class WandbTracker(WandbLogger):
    """Logs online if there is a key and the host answers, else offline, else not at all; a notice says so.

    All files are in ``<run_dir>/wandb``, with the pixels of tables, so that ``wandb sync`` can upload an offline run
    later. The run's id is there too, so that a resumed training continues the same W&B run: an offline one in a second
    folder, which ``wandb sync`` appends to the first. Steps that are trained again are not logged again.

    Args:
        run_dir: The run folder.
        project: Project of the run.
        entity: User or team; None for the account's default.
        name: Name of the run.
        group: Group of runs to compare, the experiment.
        job_type: Kind of the run, such as ``train``.
        tags: Tags to filter runs by; None among them is left out.
        seconds: How long the host may take to answer.
    """

    def __init__(
        self,
        run_dir: str,
        project: str = "atelier",
        entity: str | None = None,
        name: str | None = None,
        group: str | None = None,
        job_type: str | None = None,
        tags: Sequence[str | None] = (),
        seconds: Weight = 3.0,
    ) -> None:
        tagged = [tag for tag in tags if tag]
        super().__init__(name, run_dir, project=project, entity=entity, group=group, job_type=job_type, tags=tagged)
        # The parent class always passes it, and W&B always warns of it.
        self._wandb_init.pop("anonymous", None)
        self._experiment: Any = None
        self.folder, self.seconds = Path(run_dir).absolute() / "wandb", seconds
        self.guard = Guard("W&B")
        self.former: dict[str, int] = {}

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run, or a dummy that takes every call and does nothing if none could be started."""
        if self._experiment is None:
            self._experiment = self._started()
        return self._experiment

    @property
    def started(self) -> bool:
        """Whether there is a W&B run behind this object."""
        return not isinstance(self.experiment, _DummyExperiment)

    def _started(self) -> Any:
        try:
            return self._start()
        except Exception as error:
            notice(f"W&B could not start ({sentence_of(error)}); this run is logged to CSV only")
            return _DummyExperiment()

    def _start(self) -> Any:
        self._keep_inside()
        # The import takes seconds, which only the process that logs has to wait for.
        import wandb

        settings = wandb.setup().settings
        mode, reason = choose_mode(settings.base_url, settings.mode, self.seconds)
        if reason:
            notice(f"W&B is offline, {reason}; upload later: wandb sync {shlex.quote(str(self.folder))}/offline-run-*")
        # Several trainings in one process are several runs.
        own = {"id": self._persisted_id(), "mode": mode, "reinit": "finish_previous"}
        rows = self.guard(history_of, self.folder, own["id"]) or []
        self.former = last_steps(rows)
        run = wandb.init(**{**self._wandb_init, **own})
        run.define_metric(GLOBAL_STEP)
        run.define_metric("*", step_metric=GLOBAL_STEP, step_sync=True)
        if rows and mode == "offline":
            # Online, the host says where to go on.
            run.log({}, step=1 + max(row["_step"] for row in rows))
        return run

    def _keep_inside(self) -> None:
        """Keep pixels of tables, artifacts and caches in the run folder; W&B would write them to the home directory.

        W&B's settings stay where they are, because they name the user's host and nothing is written there.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        os.environ["WANDB_DATA_DIR"] = str(self.folder / "data")
        os.environ["WANDB_CACHE_DIR"] = str(self.folder / "cache")
        for variable, seconds in SECONDS.items():
            os.environ.setdefault(variable, seconds)

    def _persisted_id(self) -> str:
        file = self.folder / "run_id.txt"
        known = file.read_text(encoding="utf-8").strip() if file.exists() else ""
        if not known:
            known = uuid.uuid4().hex[:8]
            file.write_text(f"{known}\n", encoding="utf-8")
        return known

    def log_hyperparams(self, params: Any) -> None:
        """Log like the parent class, unless W&B did not start or fails."""
        if self.started:
            self.guard(super().log_hyperparams, params)

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log like the parent class, unless W&B did not start or fails, and what an earlier start has not logged."""
        if not self.started:
            return
        new = {name: value for name, value in metrics.items() if not step or step > self.former.get(name, 0)}
        if new:
            self.guard(super().log_metrics, new, step)

    @rank_zero_only
    def log_exports(self, exports: Mapping[str, str]) -> None:
        """Log what a training made as artifacts; ``concept bank: PATH`` becomes one of type ``concept-bank``.

        Args:
            exports: What a module's ``export`` returns; values that are not paths are skipped.
        """
        for what, path in exports.items():
            if self.started and os.path.exists(path):
                self.guard(self._log_artifact, what, Path(path))

    def _log_artifact(self, what: str, path: Path) -> None:
        import wandb

        kind = re.sub(r"[^\w.-]", "-", what)
        artifact = wandb.Artifact(f"{kind}-{re.sub(r'[^A-Za-z0-9_.-]', '-', path.stem)}", type=kind)
        add = artifact.add_dir if path.is_dir() else artifact.add_file
        add(str(path))
        self.experiment.log_artifact(artifact)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close the run of a training that failed; a successful one still has its exports to log."""
        if status == "failed":
            self.close(exit_code=1)

    @rank_zero_only
    def close(self, exit_code: int = 0) -> None:
        """Finish the run; the next training of this process starts its own, with its own folders."""
        if self._experiment is not None and self.started:
            self.guard(self._finish, exit_code)

    def _finish(self, exit_code: int) -> None:
        import wandb

        self._experiment.finish(exit_code=exit_code)
        # W&B's service reads the folders only when it starts.
        wandb.teardown(exit_code)
