"""Put the project's dashboard into a W&B account.

``python -m src.callbacks.trackers.workspace --entity NAME --project atelier [--knobs KEY ...] [--dry-run]``
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from src.callbacks.trackers.wandb import has_api_key


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the workspace, show what is in it, and save it unless told not to; returns an exit code."""
    parser = argparse.ArgumentParser(prog="python -m src.callbacks.trackers.workspace", description=__doc__)
    parser.add_argument("--entity", required=True, help="your user name or team on W&B")
    parser.add_argument("--project", default="atelier", help="project of the runs")
    parser.add_argument("--knobs", nargs="+", help="configuration keys that your sweep varies")
    parser.add_argument("--dry-run", action="store_true", help="show the sections and send nothing")
    options = parser.parse_args(arguments)
    try:
        from src.callbacks.trackers.panels import KNOBS, dashboard, outline
    except ModuleNotFoundError as error:
        return _refuse(f'the package {error.name} is missing; type: pip install -e ".[dashboard]"')
    workspace = dashboard(options.entity, options.project, options.knobs or KNOBS)
    for section, titles in outline(workspace).items():
        print(f"{section}: {', '.join(titles)}")
    return 0 if options.dry_run else _save(workspace)


def _save(workspace: Any) -> int:
    import wandb

    if not has_api_key(wandb.setup().settings.base_url):
        return _refuse("no W&B API key is set; type: wandb login, or add --dry-run")
    workspace.save()
    print(workspace.url)
    return 0


def _refuse(sentence: str) -> int:
    print(f"error: {sentence}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
