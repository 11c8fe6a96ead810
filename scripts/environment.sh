#!/usr/bin/env bash
# Sets PYTHON to an environment that has what a requirements file lists; to be sourced:
#   source scripts/environment.sh requirements.txt
# An active virtual or conda environment that has torch is reused, and what is missing is added.
# Otherwise .venv is made.
set -euo pipefail
requirements=${1:-requirements.txt}

active=${VIRTUAL_ENV:-}${CONDA_PREFIX:-}
if [[ -n "$active" ]] && python3 -c "import torch, torchvision" 2>/dev/null; then
  PYTHON=python3
else
  if [[ ! -x .venv/bin/python ]]; then
    if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
      echo "Python 3.10 or newer is needed; found $(python3 --version)" >&2
      exit 1
    fi
    echo "making .venv"
    python3 -m venv .venv
  fi
  PYTHON=$PWD/.venv/bin/python
fi
prefix=$("$PYTHON" -c 'import sys; print(sys.prefix)')
stamp=$prefix/.installed-$(cat requirements*.txt | cksum | cut -d' ' -f1)-$requirements
if [[ ! -e "$stamp" ]]; then
  echo "installing $requirements"
  "$PYTHON" -m pip install --quiet --disable-pip-version-check -r "$requirements"
  touch "$stamp" 2>/dev/null || true
fi
export PYTHON MPLBACKEND=Agg
