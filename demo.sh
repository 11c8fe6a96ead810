#!/usr/bin/env bash
# The whole path on real images that come with the Python packages: no download, no GPU.
# Makes .venv on first use (or reuses an active environment that has torch), trains a small classifier on 4,000 MNIST digits and
# scores every detector against letters (near), grey patches of photographs (far) and two kinds of noise.
# Result: results/demo/report.md
set -euo pipefail
cd "$(dirname "$0")"
source scripts/environment.sh requirements.txt

run=checkpoints/mnist5k_small_cnn_demo
"$PYTHON" classifier_pretraining.py -dataset mnist5k -arch small_cnn -out_dir "$run" -resume
"$PYTHON" eval_ood.py -config configs/mnist5k_small_cnn.json -checkpoint_name "$(basename "$run")" -out_dir results/demo
