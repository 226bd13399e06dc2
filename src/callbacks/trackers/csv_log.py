"""Lightning's CSV log, which loses no line to a kill."""

import csv
import io
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from src.data.files import whole_file


class FlushedCSVLogger(CSVLogger):
    """Writes ``<run_dir>/logs/version_<n>/metrics.csv``, each line as soon as it is logged.

    Every start has a version folder of its own: a resumed run keeps what the first part logged.

    Args:
        run_dir: The run folder.
    """

    _experiment: Any

    def __init__(self, run_dir: str) -> None:
        super().__init__(run_dir, name="logs", flush_logs_every_n_steps=1)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """What writes the file."""
        if self._experiment is None:
            self._experiment = _Lines(self.log_dir)
        return self._experiment


class _Lines(ExperimentWriter):
    """Appends whole lines; for a new column the file is written anew, beside itself."""

    metrics: list[dict[str, float]]

    def save(self) -> None:
        """Write what is not written yet."""
        if not self.metrics:
            return
        path = Path(self.metrics_file_path)
        if self._record_new_keys():
            former: list[Any] = []
            if path.exists():
                with path.open(newline="", encoding="utf-8") as file:
                    former = list(csv.DictReader(file))
            with whole_file(path) as partial:
                partial.write_text(self._text([*former, *self.metrics], header=True), newline="", encoding="utf-8")
        else:
            # One write: a process that is killed leaves a line or none.
            with path.open("ab", buffering=0) as log:
                log.write(self._text(self.metrics).encode())
        self.metrics = []

    def _text(self, rows: list[Any], header: bool = False) -> str:
        buffer = io.StringIO(newline="")
        writer = csv.DictWriter(buffer, self.metrics_keys)
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return buffer.getvalue()
