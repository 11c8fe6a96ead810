#!/bin/bash
# An example to be edited: train a classifier and a heatmap decoder on the GPUs of two machines, and
# evaluate there. Submit it with: sbatch scripts/slurm_example.sh
#
# torchrun starts one process per GPU on every machine; the scripts need no flags for that.
# -batch_size is per process: 8 processes with 25 images each make the recipe's steps of 200 images.
# (8 with 200 would make steps of 1,600 images. That is another recipe, which needs another -lr.)
# BatchNorm sees the 25 images of its process; -sync_batchnorm lets it see all 200.
#
# The same command begins a run and continues it (-resume with -out_dir), so a job goes on after its
# last whole epoch. Slurm starts it again after a preemption or the failure of a machine
# (--requeue). After a process that died, submit it again. torchrun restarts nothing (--max_restarts
# 0), because it would also start a job with bad input again. -data_dir, -out_dir and the cache must
# be on a disk that all machines see. The config's auxiliary outliers, 80 Million Tiny Images, are
# withdrawn; OUTLIERS takes their place.
#SBATCH --job-name=ood
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --output=slurm_%j.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"

RUN=${RUN:-./checkpoints/cifar10_resnet18_slurm}
DATA=${DATA:-./datasets}
OUTLIERS=${OUTLIERS:-tinyimagenet32}
GPUS=${SLURM_GPUS_ON_NODE:-4}
# sed, not head: with head, scontrol would write to a closed pipe, which ends the job
HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)

on_all_machines() {    # on_all_machines SCRIPT FLAGS...
    srun torchrun --nnodes "$SLURM_NNODES" --nproc_per_node "$GPUS" --max_restarts 0 \
        --rdzv_backend c10d --rdzv_endpoint "$HEAD:${PORT:-29500}" --rdzv_id "$SLURM_JOB_ID" "$@"
}

CONFIG=./configs/cifar10_resnet18_ood.json
on_all_machines classifier_pretraining.py -dataset cifar10 -arch resnet18 -batch_size 25 \
    -precision bf16 -data_dir "$DATA" -out_dir "$RUN" -resume
on_all_machines ood_training.py -config "$CONFIG" -classifier "$RUN/best.pt" \
    -ood_dataset "$OUTLIERS" -batch_size 25 -data_dir "$DATA" -out_dir "$RUN-heatmap" -resume
on_all_machines eval_ood.py -config "$CONFIG" -checkpoint "$RUN-heatmap" -data_dir "$DATA" \
    -out_dir ./results/cifar10_resnet18_ood
