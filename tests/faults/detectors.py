"""Detectors: settings that mean nothing, inputs that none can use, states that do not fit."""

from __future__ import annotations

import dataclasses
import math

import torch
from detector_toys import outputs

from faults import Fault
from ood import detectors
from ood.config import InputError
from ood.detectors.base import NotFitted, chunked_score

CONFIG = "configs/mnist5k_small_cnn.json"
# (detector, field, value, words of the message)
SETTINGS = [
    ("energy", "temperature", math.inf, "above 0"),
    ("energy", "temperature", 0, "above 0"),
    ("msp", "temperature", math.nan, "nan"),
    ("mcm", "temperature", -1, "above 0"),
    ("gradnorm", "temperature", "hot", "of type float"),
    ("dice", "percentile", math.nan, "nan"),
    ("dice", "percentile", -5, "at least 0"),
    ("dice", "percentile", 100, "below 100"),
    ("dice", "clip", 0, "above 0"),
    ("dice_react", "clip_percentile", 101, "at most 100"),
    ("react", "percentile", 0, "above 0"),
    ("react", "threshold", -math.inf, "above 0"),
    ("react", "detector", "knn", "logits alone"),
    ("react", "detector", "no_such", "unknown detector"),
    ("ash", "percentile", 100.1, "at most 100"),
    ("ash", "variant", "x", "allowed: s, b, p"),
    ("scale", "percentile", -0.1, "at least 0"),
    ("lts", "share", 0, "above 0"),
    ("lts", "share", 1.5, "at most 1"),
    ("vra", "gamma", -1, "at least 0"),
    ("vra", "lower", 99, "rise from lower to upper"),
    ("optfs", "bins", 0, "at least 1"),
    ("optfs", "bins", 10**12, "at most"),
    ("optfs", "tail", 0.5, "below 0.5"),
    ("knn", "k", 0, "at least 1"),
    ("knn", "k", -3, "at least 1"),
    ("knn", "k", 2.5, "of type int"),
    ("knn", "k", True, "of type int"),
    ("knn", "fraction", 0, "above 0"),
    ("knn", "seed", 10**26, "at most"),
    ("knn", "seed", -1, "at least 0"),
    ("nnguide", "k", None, "of type int"),
    ("relation", "power", 0, "above 0"),
    ("relation", "threshold", 1, "below 1"),
    ("combood", "k", 10**5000, "more than 30 digits"),
    ("vim", "dim", 0, "at least 1"),
    ("neco", "dim", -7, "at least 1"),
    ("neco", "max_logit", 1, "of type bool"),
    ("kpca", "variance", 0, "above 0"),
    ("kpca", "gamma", math.inf, "above 0"),
    ("kpca", "features", 10**9, "at most"),
    ("pnml", "eps", 0.5, "below 0.5"),
    ("gen", "gamma", 0, "above 0"),
    ("gen", "top", 0, "at least 1"),
    ("openmax", "tail", 1, "at least 2"),
    ("openmax", "alpha", 0, "at least 1"),
    ("openmax", "euclid_weight", 1.1, "at most 1"),
    ("nci", "alpha", -1e-9, "at least 0"),
    ("gmm", "reg", -1, "at least 0"),
    ("ssd", "clusters", 0, "at least 1"),
    ("gram", "powers", [], "empty"),
    ("gram", "powers", [0], "at least 1"),
    ("gram", "powers", 3, "must be a list"),
    ("nac", "bins", 25, "even"),
    ("nac", "saturation", 0, "above 0"),
    ("weiper", "repeats", 0, "at least 1"),
    ("weiper", "bins", 1, "at least 2"),
    ("weiper", "lambda_1", math.nan, "nan"),
    ("odin", "magnitude", -0.1, "at least 0"),
    ("odin", "magnitude", 2, "at most 1"),
    ("odin", "unit", "pixels", "did you mean 'pixel'"),
    ("mds_odin", "magnitude", math.inf, "at most 1"),
    ("dropout", "samples", 1, "at least 2"),
    ("adascale_a", "k1", 0, "above 0"),
    ("adascale_a", "share", 0, "above 0"),
    ("adascale_l", "lower", 90, "rise from lower to upper"),
    ("webo", "weights", [math.nan], "nan"),
    ("mds_ensemble", "weights", [math.inf], "finite"),
    ("cadref", "detector", "entropy", "allowed"),
]


def spoilt(value, dtype=torch.float32):
    """A training set with one feature that is not finite."""
    train = outputs(60)
    features = train.features.to(dtype)
    features[3, 2] = value
    return dataclasses.replace(train, features=features)


def fitted(name, train, **settings):
    return lambda folder: detectors.create(name, **settings).fit(train)


ROWS = [
    *(
        Fault(
            f"{name} {field} {'huge' if words.startswith('more than') else value}",
            action=lambda folder, n=name, f=field, v=value: detectors.create(n, **{f: v}),
            error=InputError,
            words=(name, field, words),
        )
        for name, field, value, words in SETTINGS
    ),
    *(
        Fault(
            f"eval_ood.py -detectors {text}",
            "eval_ood.py",
            ("-config", CONFIG, "-detectors", text, "-out_dir", "{tmp}/out"),
            words=words,
        )
        for text, words in {
            "dice:percentile=-5": ("dice", "percentile"),
            "dice:percentile=NaN": ("dice", "percentile"),
            "knn:k=0": ("knn", "at least 1"),
            "energy:temperature=Infinity": ("energy", "temperature"),
            "react:detector=knn": ("react", "logits alone"),
            "gram:powers=[]": ("gram", "empty"),
        }.items()
    ),
    Fault(
        "more neighbours than images",
        action=fitted("knn", outputs(40), k=41),
        error=InputError,
        words=("knn", "41", "40"),
    ),
    Fault(
        "more clusters than images",
        action=fitted("ssd", outputs(40), clusters=41),
        error=InputError,
        words=("ssd", "41", "40"),
    ),
    Fault(
        "a dimension that leaves no residual",
        action=fitted("vim", outputs(12), dim=20),
        error=InputError,
        words=("vim", "span only"),
    ),
    Fault(
        "a dimension of all features",
        action=fitted("residual", outputs(60), dim=24),
        error=InputError,
        words=("residual", "1 to 23"),
    ),
    *(
        Fault(
            f"training features with {value} in {dtype}",
            action=fitted("mds", spoilt(value, dtype)),
            error=InputError,
            words=("NaN or infinite",),
        )
        for value in (math.nan, math.inf)
        for dtype in (torch.float32, torch.float16, torch.bfloat16)
    ),
    Fault(
        "no labelled training image",
        action=fitted("mds", dataclasses.replace(outputs(9), labels=-torch.ones(9).long())),
        error=InputError,
        words=("no ID image",),
    ),
    Fault(
        "a score before the fit",
        action=lambda folder: chunked_score(detectors.create("knn"), outputs(3)),
        error=NotFitted,
        words=("knn", "fit it"),
    ),
    Fault(
        "an image detector without its pass",
        action=lambda folder: chunked_score(detectors.create("odin"), outputs(3)),
        error=InputError,
        words=("odin", "needs images"),
    ),
    Fault(
        "a state that replaces a method",
        action=lambda folder: detectors.create("knn").load_state({"score": 1.0}),
        error=InputError,
        words=("knn", "score"),
    ),
    Fault(
        "a state for another detector",
        action=lambda folder: detectors.create("knn").load_state({"gaussian.means": 1.0}),
        error=InputError,
        words=("knn", "gaussian"),
    ),
]
