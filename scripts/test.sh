#!/usr/bin/env bash
# Runs the tests: ./scripts/test.sh [pytest arguments], for example ./scripts/test.sh -k odin.
# Makes .venv on first use, or reuses an active environment that has torch.
# Two processes share the test files, each on one thread; TEST_PROCESSES=0 keeps to one process.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh requirements-dev.txt
processes=${TEST_PROCESSES:-2}
if [[ "$processes" != 0 ]]; then
  export OMP_NUM_THREADS=1
fi
exec "$PYTHON" -m pytest -q -n "$processes" --dist loadfile --no-loadscope-reorder "$@"
