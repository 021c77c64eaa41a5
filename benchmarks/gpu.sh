#!/usr/bin/env bash
# Everything that a GPU has to say, in at most 8 minutes: tests, ops, training phase. See gpu.py.
#
#     pip install -e '.[dev]' && benchmarks/gpu.sh
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python}" benchmarks/gpu.py "$@"
