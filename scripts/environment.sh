#!/usr/bin/env bash
# Sourced by demo*.sh and test.sh: sets PYTHON to an environment that has what a requirements file lists.
#   source scripts/environment.sh requirements.txt
# An active virtual or conda environment that already has torch is reused (only what is missing is added); else .venv is made.
set -euo pipefail
requirements=${1:-requirements.txt}

if [[ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]] && python3 -c "import torch, torchvision" 2>/dev/null; then
  PYTHON=python3
else
  if [[ ! -x .venv/bin/python ]]; then
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Python 3.10 or newer is needed; found $(python3 --version)" >&2; exit 1; }
    echo "making .venv"
    python3 -m venv .venv
  fi
  PYTHON=$PWD/.venv/bin/python
fi
stamp=$("$PYTHON" -c 'import sys; print(sys.prefix)')/.installed-$(cat requirements*.txt | cksum | cut -d' ' -f1)-$requirements
if [[ ! -e "$stamp" ]]; then
  echo "installing $requirements"
  "$PYTHON" -m pip install --quiet --disable-pip-version-check -r "$requirements"
  touch "$stamp" 2>/dev/null || true
fi
export PYTHON MPLBACKEND=Agg
