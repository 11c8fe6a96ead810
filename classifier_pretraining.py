"""Train a classifier, whose features, logits and classes the OOD methods look at.

    python3 classifier_pretraining.py             # small_cnn, 4,000 embedded MNIST images, CPU
    python3 classifier_pretraining.py -dataset cifar10 -arch resnet18 -device cuda:0
    python3 classifier_pretraining.py -dataset cifar100 -arch wideresnet -depth 40 -width 2
    python3 classifier_pretraining.py -dataset ./photos -size 32 -arch resnet18
                                                  # ./photos/{train,test}/<class>/*.jpg
    python3 classifier_pretraining.py -loss outlier_exposure
                                                  # learns from outliers, letters and patches
    python3 classifier_pretraining.py -dataset cifar10 -loss energy_bounded -init best.pt \\
        -ood_dataset 300K_random_images.npy -lr 0.001 -epochs 10
    python3 classifier_pretraining.py -resume -out_dir checkpoints/RUN
                                                  # continue a run that was interrupted
    python3 classifier_pretraining.py -dataset cifar10 -augment pixmix -augment_args k=3 -download
    torchrun --nproc_per_node 4 classifier_pretraining.py -dataset cifar10 -batch_size 50
                                                  # 4 GPUs, 200 images a step

Writes checkpoints/<data set>_<arch>_<time>/ (or -out_dir):

    config.json   the settings
    log.jsonl     one line per epoch
    last.pt       everything that -resume needs
    best.pt       the weights with the highest validation accuracy

A weight file holds the network, whatever -loss trained it. Under "objective" it holds what the loss
learned itself (centres, a confidence head, ...).

Without other flags the recipe is that of "Heatmap-based Out-of-Distribution Detection" (Hornauer
and Belagiannis, WACV 2023): 100 epochs, batches of 200, SGD at 0.1, and a tenth of the rate
whenever the validation accuracy has not risen for ten epochs. Three things differ from the authors'
code: validation images are not augmented (-valid_augment does as released), the split is seeded,
and the best weights are tested as well as the last.
"""

from __future__ import annotations

import json

import ood

ood.catch_interrupts()  # before torch loads

import models
from ood import cli, losses
from ood.config import InputError, merge
from ood.training import loop, pretraining
from ood.training.settings import AUGMENTATIONS, DIGITS, PICTURES, read_settings

parser = cli.Parser(
    "Train a classifier.",
    "Exit code: 0 trained, 2 bad input, 1 the run failed (a loss that is not finite).",
)
parser.flag(
    "-config",
    help="JSON file with any of the settings below (by the flags' names); flags win",
)
parser.flag(
    "-dataset",
    dest="id_dataset",
    aliases=("-id_dataset",),
    help="registered data set or image folder [default: mnist5k]",
)
parser.flag(
    "-arch",
    help=f"network: {', '.join(models.names())}, torchvision_NAME "
    "[default: small_cnn for mnist5k, resnet18 for cifar, resnet50 for tinyimagenet]",
)
parser.flag("-depth", type=int, help="depth of densenet, wrn, wideresnet [default: the network's]")
parser.flag("-width", type=int, help="width of wrn, wideresnet, small_* [default: the network's]")
parser.flag(
    "-model_args",
    nargs="+",
    metavar="KEY=VALUE",
    help="further options of the network, e.g. dropout=0.3 pool=adaptive",
)
parser.flag("-size", type=int, help="side of the images in pixels [default: the data set's]")
parser.flag(
    "-mean",
    type=float,
    nargs="+",
    metavar="M",
    help="normalisation, pixel units of [0, 1] [default: 0.5, or the data set's]",
)
parser.flag(
    "-std",
    type=float,
    nargs="+",
    metavar="S",
    help="normalisation [default: 0.5, or the data set's]",
)
parser.flag(
    "-augment",
    choices=AUGMENTATIONS,
    help=f"of training images: {', '.join(AUGMENTATIONS)} "
    f"[default: crop_flip; resized_crop_flip for tinyimagenet; {DIGITS} for digits]",
)
parser.flag(
    "-augment_args",
    nargs="+",
    metavar="KEY=VALUE",
    help="of -augment pixmix: k, beta, severity, all_ops, probability, and base, the augmentation "
    "before it [default: k=4 beta=3 severity=3 all_ops=false probability=0.5, the usual base]",
)
parser.flag(
    "-mixing_set",
    nargs="+",
    metavar="NAME",
    help="pictures of -augment pixmix: registered sets, folders, .npy arrays; several are joined "
    f"[default: {PICTURES}; patches for mnist5k]",
)
parser.flag(
    "-valid_split",
    type=float,
    help="fraction of the training set held out for validation [default: 0.01; mnist5k: 0.1]",
)
parser.flag(
    "-valid_augment",
    action="store_true",
    help="augment validation images too: released behaviour [default: off]",
)
parser.flag("-loss", help=f"objective: {', '.join(losses.names())} [default: cross_entropy]")
parser.flag(
    "-loss_args",
    nargs="+",
    metavar="KEY=VALUE",
    help="arguments of the loss, e.g. alpha=0.5 [default: the paper's]",
)
parser.flag(
    "-ood_dataset",
    nargs="+",
    metavar="NAME",
    help="auxiliary outliers, for a loss that learns from them: registered sets (their training "
    "halves), folders, .npy arrays; several are joined "
    "[default: letters+patches for mnist5k, else none]",
)
parser.flag(
    "-ood_batch_size",
    type=int,
    help="outliers in every step, beside the ID images [default: as -batch_size]",
)
parser.flag(
    "-init",
    metavar="FILE",
    help="weight file to begin from, of the same network [default: random weights]",
)
parser.flag("-epochs", type=int, help="[default: 100; tinyimagenet: 200; mnist5k: 12]")
parser.flag(
    "-batch_size",
    type=int,
    help="images per step, under torchrun of every process "
    "[default: 200; tinyimagenet: 128; mnist5k: 64]",
)
parser.flag("-optimizer", choices=loop.OPTIMIZERS, help="sgd or adam [default: sgd]")
parser.flag("-lr", type=float, help="learning rate; the highest one of onecycle [default: 0.1]")
parser.flag("-momentum", type=float, help="of sgd [default: 0.9]")
parser.flag("-nesterov", action="store_true", help="Nesterov's momentum [default: off]")
parser.flag("-weight_decay", type=float, help="on all parameters [default: 0.0005]")
parser.flag(
    "-schedule",
    choices=loop.SCHEDULES,
    help=f"{', '.join(loop.SCHEDULES)} "
    "[default: plateau on validation accuracy; mnist5k: onecycle]",
)
parser.flag(
    "-milestones",
    type=int,
    nargs="+",
    metavar="EPOCH",
    help="of -schedule steps: epochs after which lr is multiplied by gamma",
)
parser.flag("-gamma", type=float, help="factor of the schedules steps and plateau [default: 0.1]")
parser.flag("-patience", type=int, help="of -schedule plateau, epochs [default: 10]")
parser.flag("-clip_norm", type=float, help="largest norm of the gradient [default: no clipping]")
parser.flag(
    "-ema",
    type=float,
    metavar="DECAY",
    help="keep a moving average of the weights, e.g. 0.999: it is validated, tested and saved "
    "[default: off]",
)
parser.flag(
    "-sampler",
    choices=("shuffle", "balanced"),
    help="balanced: every class equally often, for sets with rare classes [default: shuffle]",
)
parser.flag(
    "-precision",
    choices=loop.PRECISIONS,
    help="fp32, or bf16: autocast, weights stay fp32 [default: fp32]",
)
parser.flag(
    "-channels_last",
    choices=("auto", "on", "off"),
    help="memory layout NHWC: on, off, auto [default: auto, on a GPU]",
)
parser.flag(
    "-compile",
    action="store_true",
    help="torch.compile: a slow first step, faster ones after it [default: off]",
)
parser.flag(
    "-sync_batchnorm",
    action="store_true",
    help="under torchrun: BatchNorm sees the images of all processes [default: each its own]",
)
parser.flag(
    "-tensorboard",
    action="store_true",
    help="also write events for TensorBoard into the run folder [default: off]",
)
parser.flag(
    "-seed",
    type=int,
    help="of the split, the weights, order, augmentation and dropout [default: 0]",
)
parser.flag(
    "-deterministic",
    action="store_true",
    help="deterministic kernels on a GPU too, slower [default: off]",
)
parser.flag(
    "-limit",
    type=int,
    help="at most so many images per split, every class kept (a quick look) [default: all]",
)
parser.flag("-device", help="cpu, cuda:0, ... [default: cuda:0 where there is one, else cpu]")
parser.flag("-data_dir", help="root of the data sets [default: ./datasets]")
parser.flag("-download", action="store_true", help="fetch a missing set first [default: off]")
parser.flag(
    "-num_workers", type=int, help="threads that decode large images [default: one per core]"
)
parser.flag("-checkpoints_dir", help="where run folders are made", default="./checkpoints")
parser.flag("-out_dir", help="the run folder itself [default: CHECKPOINTS_DIR/DATASET_ARCH_TIME]")
parser.flag(
    "-resume",
    action="store_true",
    default=False,
    help="continue the run in -out_dir (begin it if there is none yet), "
    "or the newest run of these very settings",
)


def main() -> None:
    flags = vars(parser.parse_args())
    config, root, out_dir, resume = (
        flags.pop(name) for name in ("config", "checkpoints_dir", "out_dir", "resume")
    )
    pairs = ("model_args", "loss_args", "augment_args")
    flags.update({name: options(flags[name], name) for name in pairs})
    for name in ("ood_dataset", "mixing_set"):
        flags[name] = flags[name] and "+".join(flags[name])
    pretraining.train_classifier(
        models,
        merge(read_settings(config), flags),
        root=root,
        out_dir=out_dir,
        resume=resume,
    )


def options(words: list[str] | None, flag: str) -> dict | None:
    """['dropout=0.3', 'pool=adaptive'] -> {'dropout': 0.3, 'pool': 'adaptive'}."""
    if words is None:
        return None
    pairs = [word.partition("=") for word in words]
    for (key, equals, _), word in zip(pairs, words):
        if not key or not equals:
            raise InputError(f"-{flag} takes KEY=VALUE, got '{word}'")
    return {key: literal(value) for key, _, value in pairs}


def literal(text: str):
    """A number, true, false, or the text itself."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


if __name__ == "__main__":
    cli.run(main, (models.ModelError, models.CheckpointError), processes="many")
