"""Command lines that no script takes: unknown flags, guessed prefixes, missing files."""

from __future__ import annotations

from faults import Fault

CONFIG = "configs/mnist5k_small_cnn.json"
SCRIPTS = (
    "classifier_pretraining.py",
    "ood_training.py",
    "eval_ood.py",
    "train_all.py",
    "scripts/fit_detector.py",
    "scripts/tune_detector.py",
    "scripts/table_detectors.py",
    "scripts/check_data.py",
    "scripts/download_data.py",
)

ROWS = [
    Fault(
        "unknown flag of scripts/score_images.py",
        "scripts/score_images.py",
        ("-detector", "x.npz", "-input", "{tmp}", "-no_such_flag", "1"),
        words=("no_such",),
    ),
    *(
        Fault(f"unknown flag of {s}", s, ("-no_such_flag", "1"), words=("no_such",))
        for s in SCRIPTS
    ),
    *(
        Fault(
            f"missing config of {s}",
            s,
            ("-config", "{tmp}/none.json", "-out_dir", "{tmp}/out"),
            words=("none.json",),
        )
        for s in ("classifier_pretraining.py", "ood_training.py", "eval_ood.py")
    ),
    Fault(
        "device that is not there",
        "eval_ood.py",
        ("-config", CONFIG, "-device", "cuda:77", "-out_dir", "{tmp}/out"),
        words=("cuda:77",),
    ),
]
