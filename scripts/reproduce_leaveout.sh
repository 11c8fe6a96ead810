#!/usr/bin/env bash
# The leave-out paper's table: 20 trainings (5 folds x {DenseNet, WideResNet} x {CIFAR-10,
# CIFAR-100}), then all of its OOD sets.
#   scripts/reproduce_leaveout.sh cuda:0 cuda:1   # GPUs that share the folds; default: the first
# Needs CIFAR (-download fetches it) and the ODIN folders Imagenet, Imagenet_resize, LSUN,
# LSUN_resize and iSUN in ./datasets/ood_datasets; datasets/README.md says where they come from.
# Finished trainings are skipped and interrupted ones are resumed.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh requirements.txt
devices=("${@:-cuda:0}")

"$PYTHON" train_all.py -devices "${devices[@]}" -download
for id in cifar10 cifar100; do
  for wide in "" --wide; do
    "$PYTHON" test.py --in-dataset "$id" --out-dataset all --magnitude 0.002 $wide \
      -device "${devices[0]}"
  done
done
