#!/usr/bin/env bash
# DICE's CIFAR demo: CIFAR-100 and CIFAR-10, first without sparsity (energy), then with it (dice,
# p = 90).
# Each data set is passed once.
#
# The authors' repository, deeplearning-wisc/dice, holds their weights and feature means. They go
# into checkpoints/{CIFAR-10,CIFAR-100}/densenet/checkpoint_100.pth.tar and
# checkpoints/{CIFAR-10,CIFAR-100}_densenet_feat_stat.npy. Without them the newest DenseNet that was
# trained here is used, and the mean is computed from its training set. One command fetches both:
# python3 eval_ood.py -weights densenet-100-12/cifar10/crossentropy/dice -detectors energy dice
#
# Usage: ./demo-cifar.sh [flags of eval_ood.py, e.g. -device cuda:0 -data_dir /data]
set -euo pipefail
cd "$(dirname "$0")"
source scripts/environment.sh requirements.txt

for name in CIFAR-100 CIFAR-10; do
  key=$(echo "$name" | tr -d - | tr '[:upper:]' '[:lower:]')
  weights=checkpoints/$name/densenet/checkpoint_100.pth.tar
  mean=checkpoints/${name}_densenet_feat_stat.npy
  arguments=(-config "configs/dice_$key.json")
  [[ -e $weights ]] && arguments+=(-checkpoint "$weights")
  [[ -e $weights && -e $mean ]] && arguments+=(-feature_mean "$mean")
  # Without sparsity, then with it. The second run reads what the first one extracted.
  for detector in energy dice; do
    "$PYTHON" eval_ood.py "${arguments[@]}" -detectors "$detector" \
      -out_dir "results/demo-cifar/${key}_$detector" "$@"
  done
done
