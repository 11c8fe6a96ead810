#!/usr/bin/env bash
# The whole path on real images that come with the Python packages: no download, no GPU, about three minutes on two CPU cores.
# Makes .venv on first use (or reuses an active environment that has torch), trains a small classifier on 4,000 MNIST digits and the
# three methods (heatmap decoder, leave-out ensemble, VMDLS), and scores every detector and method against letters (near), grey
# patches of photographs (far) and two kinds of noise.
# Result: results/demo/report.md, and results/demo/{heatmap,leaveout,vmdls}/report.md
set -euo pipefail
cd "$(dirname "$0")"
source scripts/environment.sh requirements.txt

runs=checkpoints/demo      # an interrupted demo continues where it stopped; remove the folder to begin anew
"$PYTHON" classifier_pretraining.py -dataset mnist5k -arch small_cnn -out_dir $runs/mnist5k_small_cnn -resume
"$PYTHON" eval_ood.py -config configs/mnist5k_small_cnn.json -checkpoints_dir $runs -detectors all -out_dir results/demo

"$PYTHON" ood_training.py -config configs/mnist5k_small_ood.json -checkpoints_dir $runs -out_dir $runs/heatmap -resume
"$PYTHON" eval_ood.py -config configs/mnist5k_small_ood.json -checkpoints_dir $runs -checkpoint_name heatmap -out_dir results/demo/heatmap

"$PYTHON" train_all.py -config configs/mnist5k_small_leaveout.json -checkpoints_dir $runs
"$PYTHON" eval_ood.py -config configs/mnist5k_small_leaveout.json -checkpoints_dir $runs -out_dir results/demo/leaveout

"$PYTHON" ood_training.py -config configs/mnist5k_vmdls.json -checkpoints_dir $runs -out_dir $runs/vmdls -resume
"$PYTHON" eval_ood.py -config configs/mnist5k_vmdls.json -checkpoints_dir $runs -checkpoint_name vmdls -out_dir results/demo/vmdls
