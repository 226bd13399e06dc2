#!/usr/bin/env bash
# Six held-out subjects, ten prompts, four seeds; then every two of them in one image. About ten minutes on two CPU cores.
set -euo pipefail
cd "$(dirname "$0")/../.."
python eval.py suite=world name=suite "$@"
python eval.py protocol=pairs suite=world name=suite_pairs "$@"
