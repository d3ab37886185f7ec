#!/bin/sh
# What a GPU changes: the tests that need one, then benchmarks/gpu.py; at most 8 minutes on a GPU of the H100's class.
# Then the frontier of fine-tuning with 50 million weights (benchmarks/fine_tune_gpu.py), at most 10 minutes more.
# Without a GPU the same at small size, in about two minutes: it shows that the scripts run, not what a GPU does.
#
#     sh benchmarks/gpu.sh [results.json [frontier.json]]
set -eu
cd "$(dirname "$0")/.."
PYTHON="${PYTHON:-python}"
"$PYTHON" -m pytest -p no:cacheprovider -rs tests/test_importance.py tests/test_importance_loops.py \
    tests/test_plasticity.py -k "device or gpu"
"$PYTHON" benchmarks/gpu.py --json "${1:-gpu.json}"
"$PYTHON" benchmarks/fine_tune_gpu.py --json "${2:-fine_tune_gpu.json}"
