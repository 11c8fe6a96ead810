"""The flags of the VMDLS authors' test.py, and ours beside them."""

from __future__ import annotations

from ood import cli
from ood.methods.vmdls.autoencoder import BOLTS
from ood.methods.vmdls.settings import ENCODERS

KNOWN = {"mnist": "mnist", "cifar_known": "cifar10", "cifar100_known": "cifar100"}

# The classes of a set that K leaves out.
SPLITS = {"cifar_unknown": "cifar10", "cifar100_unknown": "cifar100"}

# --data_transforms -> mean and std of its normalisation; None: none.
CIFAR = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
TRANSFORMS = {
    "cifar": CIFAR,
    "cifar_test": CIFAR,
    "mnist": ((0.5,), (0.5,)),
    "blob": ((0.5,), (0.5,)),
    "toy": None,
    "emnist": ((0.1307,), (0.3081,)),
}

# What an auto-encoder may have been trained with.
AE_TRANSFORMS = {**TRANSFORMS, "bolts": BOLTS}

# Flags of the README's commands that change no test result. They steer the training, the authors'
# logger or their trainer.
INERT_VALUES = (
    "generation_epoch",
    "lower_bound",
    "step_size",
    "step_gamma",
    "margin_max_distance",
    "margin_jumps",
    "margins_epoch",
    "lr",
    "kl_coeff",
    "max_epochs",
    "gpus",
    "num_workers",
    "opt",
    "input_height",
    "precision",
    "cov_scaling",
    "recon_weight",
    "gen_weight",
    "finetune_lr",
    "weights",
)
INERT_SWITCHES = ("offline", "finetune", "log_tsne", "first_conv", "maxpool1")

# Spellings of the README that its parser only guesses.
ALIASES = {"margin_jumps": ("margin_jump",), "margins_epoch": ("margin_epochs",)}

# Flags that tell a command of VMDLS from others.
MARKS = ("enc_type", "known_dataset", "unknown_dataset", "latent_dim", "ae_features")


def make_parser() -> cli.Parser:
    parser = cli.Parser(
        "Test VMDLS on one pair of data sets (flags of its README).",
        "Accepted without effect: " + ", ".join(INERT_VALUES + INERT_SWITCHES) + ".",
    )
    switch = dict(action="store_true", default=False)

    # The README's.
    parser.flag(
        "-enc_type",
        help=f"encoder: {', '.join(ENCODERS)}, or a name of models.names()",
        default="resnet18",
    )
    parser.flag("-latent_dim", type=int, help="dimension of mu", default=32)
    parser.flag("-enc_out_dim", type=int, help="features of the encoder; only checked")
    parser.flag(
        "-class_num", type=int, help="K, the number of known classes; default: all of the set"
    )
    parser.flag(
        "-known_dataset", help=f"{', '.join(KNOWN)}, or a registered ID set", default="mnist"
    )
    parser.flag(
        "-unknown_dataset",
        help=f"a registered set, a folder, or {', '.join(SPLITS)}",
        default="omniglot",
    )
    parser.flag(
        "-data_transforms",
        help=f"which normalisation to use: {', '.join(TRANSFORMS)}; "
        "default: the checkpoint's or the data set's",
    )
    parser.flag(
        "-checkpoint_path",
        help="weight file: the authors' .ckpt, or one of a run folder; "
        "default: the newest run of these settings",
    )
    parser.flag("-batch_size", type=int, help="images per pass", default=256)
    parser.flag(
        "-batch_classes",
        type=int,
        help="classes per batch of the released accumulation; "
        "no effect without -accumulate released",
        default=1,
    )
    parser.flag(
        "-sample_count",
        type=int,
        help="images per class in such a batch; no effect without -accumulate released",
        default=4996,
    )
    parser.flag("-ae_features", help="weight the scores with the reconstruction error", **switch)
    parser.flag("-thresholding", help="print and write the table of thresholds", **switch)
    parser.flag("-data_dir", help="root of the data sets", default="./datasets")

    # Ours.
    parser.flag(
        "-ae_checkpoint",
        help="weights of the auto-encoder; "
        "default: the newest run of method autoencoder for the known set",
    )
    parser.flag(
        "-ae_transforms",
        help=f"normalisation that the auto-encoder was trained with: {', '.join(AE_TRANSFORMS)}; "
        "it is needed for a file that stores none; default: bolts for CIFAR, else the data set's",
    )
    parser.flag(
        "-accumulate",
        choices=("all", "released"),
        help="class statistics from all training images, or as the released sampler",
        default="all",
    )
    parser.flag(
        "-statistics", choices=("float64", "released"), help="released: float32", default="float64"
    )
    parser.flag(
        "-jitter",
        type=float,
        help="added to the diagonals of the covariances; default: searched in steps of 1e-6",
    )
    parser.flag("-jitter_report", help="also print how the metrics move with the jitter", **switch)
    parser.flag(
        "-ae_input",
        choices=("own", "released"),
        help="normalisation of the auto-encoder's input: its own, or the encoder's as the "
        "authors' script feeds it",
        default="released",
    )
    parser.flag(
        "-shift",
        choices=("peak", "released"),
        help="released: from the largest likelihood among the test images",
        default="peak",
    )
    parser.flag(
        "-dropout",
        choices=("off", "released"),
        help="wresnet at test; released: it stays on",
        default="off",
    )
    parser.flag("-device", help="cpu, cuda:0, ...; default: cuda:0 where there is one, else cpu")
    parser.flag("-checkpoints_dir", help="where run folders are", default="./checkpoints")
    parser.flag(
        "-limit", type=int, help="at most this many images per set (a quick look); default: all"
    )
    parser.flag("-seed", type=int, help="of generated images and of the reshuffle", default=0)
    parser.flag(
        "-download", help="fetch missing sets first (see scripts/download_data.py)", **switch
    )
    parser.flag(
        "-out_dir", help="folder of the results; default: ./results/vmdls_<known>_<unknown>"
    )
    for name in INERT_VALUES:
        parser.flag(f"-{name}", help="no effect on a test", aliases=ALIASES.get(name, ()))
    for name in INERT_SWITCHES:
        parser.flag(f"-{name}", action="store_true", help="no effect on a test")
    return parser


def without_effect(flags, argv: list[str]) -> list[str]:
    """Return the names of the flags in a command that change nothing."""
    names = INERT_VALUES + INERT_SWITCHES
    found = [name for name in names if getattr(flags, name) not in (None, False)]
    if flags.accumulate == "all":
        given = {word.lstrip("-").split("=")[0] for word in argv if word.startswith("-")}
        found += [name for name in ("batch_classes", "sample_count") if name in given]
    return found


def is_vmdls(words: list[str]) -> bool:
    """Return whether a command has flags that only the VMDLS README knows."""
    return any(word.startswith("-") and word.lstrip("-").split("=")[0] in MARKS for word in words)
