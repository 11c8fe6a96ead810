"""Calls of pytorch-ood's names with shapes, types and values that mean nothing."""

from __future__ import annotations

import torch
from torch import nn

from faults import Fault
from ood import compat
from ood.config import InputError

X, C = torch.randn(8, 10), 4
NET = nn.Linear(10, C)
MAPS = torch.randn(8, 3, 4, 4)
Y = torch.arange(8) % C
S, MIXED = torch.rand(4), torch.tensor([0, 1, -1, -1])
NOTHING = [(X[:1], torch.tensor([-1]))]


def call(name, action, *words, error=InputError):
    return Fault(name, action=lambda folder: action(), error=error, words=words)


ROWS = [
    call("ODIN of one vector", lambda: compat.ODIN(NET)(X[0]), "shape"),
    call("ODIN of bytes", lambda: compat.ODIN(NET)(X.byte()), "floating-point"),
    call("ODIN std", lambda: compat.ODIN(NET, norm_std=[1.0, 2.0])(X), "2 values for 10"),
    call("ODIN temperature", lambda: compat.ODIN(NET, temperature=0), "temperature is 0"),
    call("ODIN without network", lambda: compat.ODIN(None)(X), "network"),
    call("logits of one image", lambda: compat.MaxSoftmax.score(S), "(N, C)", "(4,)"),
    call("logits of no class", lambda: compat.GEN(None).predict_logits(X[:, :0]), "(8, 0)"),
    call("complex logits", lambda: compat.Entropy.score(X.to(torch.complex64)), "complex64"),
    call("features as maps", lambda: compat.KNN(None).fit_features(MAPS, Y), "pool feature maps"),
    call("labels too few", lambda: compat.KNN(None).fit_features(X, Y[:3]), "(3,)", "8 rows"),
    call(
        "features of another width",
        lambda: compat.Mahalanobis(None).fit_features(X, Y).predict_features(X[:, :9]),
        "(9,)",
        "(10,)",
    ),
    call("not fitted", lambda: compat.KNN(None).predict_features(X), "fit"),
    call("head width", lambda: compat.LTS(None, NET).predict_features(X[:, :9]), "9 columns"),
    call(
        "labels per image for maps of logits",
        lambda: compat.TemperatureScaling(None).fit_logits(MAPS, Y % 3),
        "label per position",
    ),
    call(
        "maps of NaN",
        lambda: compat.SCALE(None, nn.Flatten()).predict_feature_maps(MAPS * torch.nan),
        "NaN or infinite",
    ),
    call(
        "maps without a head",
        lambda: compat.ReAct(None, None, threshold=1.0).predict_feature_maps(MAPS),
        "without a head",
    ),
    call(
        "RankFeat of vectors", lambda: compat.RankFeat(None, NET).predict_feature_maps(X), "shape"
    ),
    call("Gram classes", lambda: compat.Gram(NET, [nn.Identity()], 7).fit([(X, Y)]), "is 7"),
    call("NACUE lists", lambda: compat.NACUE(NET, [NET], m_bins=[1, 2]), "2 values for 1"),
    call("empty loader", lambda: compat.KNN(nn.Identity()).fit([]), "no batch"),
    call(
        "no parameter chosen",
        lambda: compat.GradNorm(NET, lambda name: False)(X),
        "param_filter",
    ),
    call("percentile", lambda: compat.ASH(None, None, percentile=65), "fraction", error=ValueError),
    call("nothing to search", lambda: compat.GridSearch(compat.MaxLogit(NET), None, []), "nothing"),
    call(
        "search without a loader to fit on",
        lambda: compat.GridSearch(compat.KNN(NET), None, [], {"k": [1]}).run(),
        "fit_loader",
    ),
    call(
        "search by a value that the metric lacks",
        lambda: compat.GridSearch(
            compat.GEN(NET), None, [(X, torch.tensor([0] * 4 + [-1] * 4))], metric_name="F1"
        ).run(),
        "not F1",
    ),
    call("metrics of one side", lambda: compat.AUROC().update(S, MIXED.abs()).compute(), "OOD"),
    call("metrics of NaN", lambda: compat.AUROC().update(S * torch.nan, MIXED).compute(), "NaN"),
    call("metrics of lists", lambda: compat.AUROC().update([1], [0]), "tensor", error=TypeError),
    call("metrics of shapes", lambda: compat.AUROC().update(S, MIXED[:3]), "(4,)", "(3,)"),
    call("tpr in per cent", lambda: compat.FPRAtTPR(95), "fraction"),
    call("void label", lambda: compat.AUROC(void_label=-1), "below 0"),
    call(
        "pixels of no image", lambda: compat.PerImage(compat.AUROC()).update(S[0], MIXED[0]), "axis"
    ),
    call("features of no ID", lambda: compat.extract_features(NOTHING, NET, None), "no ID"),
    call("class twice", lambda: compat.TargetMapping({1}, {1}), "both", error=ValueError),
]
