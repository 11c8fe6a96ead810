#!/usr/bin/env bash
# DICE's ImageNet demo with torchvision's ResNet-50: first without sparsity (energy), then dice with
# p = 70, then dice on clipped features.
#
# Needs datasets/ILSVRC-2012/val and datasets/ood_datasets/{iNaturalist,SUN,Places,dtd}. With the
# authors' feature mean in checkpoints/imagenet_resnet50_feat_stat.npy the training set is not
# needed. Without it, datasets/ILSVRC-2012/train is read once.
#
# Usage: ./demo-imagenet.sh [flags of eval_ood.py, e.g. -device cuda:0 -data_dir /data]
set -euo pipefail
cd "$(dirname "$0")"
source scripts/environment.sh requirements.txt

mean=checkpoints/imagenet_resnet50_feat_stat.npy
arguments=(-config configs/dice_imagenet.json)
[[ -e $mean ]] && arguments+=(-feature_mean "$mean")
for detector in energy dice dice_react; do
  "$PYTHON" eval_ood.py "${arguments[@]}" -detectors "$detector" \
    -out_dir "results/demo-imagenet/$detector" "$@"
done
