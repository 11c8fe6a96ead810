#!/usr/bin/env bash
# The heatmap paper's settings, from training the classifier to the report:
#   scripts/reproduce_heatmap.sh cifar10_resnet18 -device cuda:0
# Settings: cifar10_resnet18 cifar100_resnet18 cifar10_wideresnet_40x2 cifar100_wideresnet_40x2
# tinyimagenet_resnet50, and mnist5k_small (embedded images).
# The paper's auxiliary set (80 Million Tiny Images) is withdrawn. AUX names another one: a
# registered set, a folder or an .npy file. The paper reports the mean of five decoders;
# SEEDS="0 1 2 3 4" trains five. Further flags (-device, -data_dir, ...) go to every script.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
setting=${1:?name a setting, e.g. cifar10_resnet18}
shift
config=configs/${setting}_ood.json
if [ ! -f "$config" ]; then
  echo "no $config; settings: $(cd configs && echo *_ood.json | sed 's/_ood.json//g')" >&2
  exit 2
fi
dataset=${setting%%_*}
case $setting in
  *wideresnet_40x2) network=(-arch wideresnet -depth 40 -width 2) ;;
  *small) network=(-arch small_cnn) ;;
  *resnet50) network=(-arch resnet50) ;;
  *) network=(-arch resnet18) ;;
esac
case $dataset in
  mnist5k) aux=${AUX:-letters+patches} ;;
  tinyimagenet) aux=${AUX:-places365} ;;
  *) aux=${AUX:-tinyimagenet32} ;;
esac

classifier=checkpoints/${setting}_classifier
"$PYTHON" classifier_pretraining.py -dataset "$dataset" "${network[@]}" \
  -out_dir "$classifier" -resume "$@"
for seed in ${SEEDS:-0}; do
  for pairing in ${PAIRINGS:-correct released}; do
    run=${setting}_ood_fw1_${pairing}_seed$seed
    "$PYTHON" ood_training.py -config "$config" -classifier "$classifier" -ood_dataset "$aux" \
      -pairing "$pairing" -seed "$seed" -out_dir "checkpoints/$run" -resume "$@"
    "$PYTHON" eval_ood.py -config "$config" -checkpoint_name "$run" -out_dir "results/$run" "$@"
  done
done
