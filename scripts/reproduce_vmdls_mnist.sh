#!/usr/bin/env bash
# VMDLS on MNIST against Omniglot, MNIST-noise and noise: auto-encoder, encoder, scores, record.
#
#   ./scripts/reproduce_vmdls_mnist.sh                       # short: an hour on two CPU cores
#   ./scripts/reproduce_vmdls_mnist.sh full -device cuda:0   # as published: 100 epochs, float32
#
# Run it again after a break: it goes on where it stopped. DATA_DIR (default ./datasets) holds
# MNIST/raw and omniglot-py; CHECKPOINTS_DIR (default ./checkpoints) gets the two run folders.
set -euo pipefail
cd "$(dirname "$0")/.."
length=short
if [[ "${1:-}" == short || "${1:-}" == full ]]; then length=$1; shift; fi
data=${DATA_DIR:-./datasets}
runs=${CHECKPOINTS_DIR:-./checkpoints}
python=${PYTHON:-python3}
where=(-data_dir "$data" -checkpoints_dir "$runs" -resume)
if [[ $length == short ]]; then
  config=configs/vmdls_mnist_short.json; vmdls=()
  ae=(-epochs 3 -batch_size 64 -lr 0.001 -precision bf16)
else
  config=configs/vmdls_mnist.json; vmdls=(-epochs 100)
  ae=(-epochs 20)
fi
"$python" ood_training.py -config configs/mnist_autoencoder.json "${ae[@]}" "${where[@]}" \
  -out_dir "$runs/mnist_autoencoder_$length" "$@"
"$python" ood_training.py -config "$config" ${vmdls[@]+"${vmdls[@]}"} "${where[@]}" \
  -out_dir "$runs/vmdls_mnist_$length" "$@"
"$python" scripts/reproduce_vmdls_mnist.py -length "$length" \
  -data_dir "$data" -checkpoints_dir "$runs" "$@"
