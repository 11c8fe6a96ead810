#!/usr/bin/env bash
# Runs the tests: ./scripts/test.sh [pytest arguments]. Makes .venv on first use, or reuses an active environment that has torch.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh requirements-dev.txt
exec "$PYTHON" -m pytest -q "$@" tests
