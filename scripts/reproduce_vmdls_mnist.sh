#!/usr/bin/env bash
# VMDLS on MNIST against Omniglot, MNIST-noise and noise: auto-encoder, encoder, scores, docs/results.md.
#
#   ./scripts/reproduce_vmdls_mnist.sh                       # short: about an hour on two CPU cores; continues where it stopped
#   ./scripts/reproduce_vmdls_mnist.sh full -device cuda:0   # as published: 100 epochs of 374 batches, float32
#
# DATA_DIR (default ./datasets) holds MNIST/raw and omniglot-py; CHECKPOINTS_DIR (default ./checkpoints) gets the two run folders.
set -euo pipefail
cd "$(dirname "$0")/.."
length=short
if [[ "${1:-}" == short || "${1:-}" == full ]]; then length=$1; shift; fi
data=${DATA_DIR:-./datasets}
runs=${CHECKPOINTS_DIR:-./checkpoints}
python=${PYTHON:-python3}
where=(-data_dir "$data" -checkpoints_dir "$runs" -resume)
if [[ $length == short ]]; then
  ae=(-epochs 4 -steps 125 -batch_size 64 -lr 0.001 -precision bf16)
  vmdls=(-epochs 25 -steps 40 -lr 0.0005 -precision bf16)
else
  ae=(-epochs 20)
  vmdls=(-epochs 100)
fi
"$python" ood_training.py -config configs/mnist_autoencoder.json "${ae[@]}" "${where[@]}" -out_dir "$runs/mnist_autoencoder_$length" "$@"
"$python" ood_training.py -config configs/mnist_vmdls.json "${vmdls[@]}" "${where[@]}" -out_dir "$runs/mnist_vmdls_$length" "$@"
"$python" scripts/reproduce_vmdls_mnist.py -length "$length" -data_dir "$data" -checkpoints_dir "$runs" "$@"
