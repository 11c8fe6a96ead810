"""Losses take pytorch-ood's words for their arguments, and wrong calls raise its exceptions."""

import pytest
import torch
from torch import nn

from ood import compat, losses

peer = pytest.importorskip("pytorch_ood", reason="pytorch-ood is not installed")

L, Y, Z = torch.randn(8, 4), torch.arange(8) % 4, torch.randn(8, 4)


# Calls of losses with pytorch-ood's words: (call, {their word: (our word, value)}).
WORDS = (
    (lambda k: losses.OutlierExposureLoss()(L, **k), {"target": ("y", Y)}),
    (lambda k: losses.CrossEntropyLoss()(L, **k), {"targets": ("y", Y)}),
    (lambda k: losses.BackgroundClassLoss(3)(L, **k), {"targets": ("y", Y.clamp(max=2))}),
    (lambda k: losses.EnergyRegularizedLoss()(L, **k), {"targets": ("y", Y)}),
    (lambda k: losses.EntropicOpenSetLoss()(L, **k), {"target": ("y", Y)}),
    (lambda k: losses.LogitNorm()(L, **k), {"target": ("y", Y)}),
    (lambda k: losses.logit_norm_loss(L, **k), {"target": ("y", Y)}),
    (lambda k: losses.ObjectosphereLoss()(L, Z, **k), {"target": ("y", Y)}),
    (lambda k: losses.ConfidenceLoss()(L, Z[:, :1].sigmoid(), **k), {"target": ("y", Y)}),
    (
        lambda k: losses.EnergyMarginLoss(0.5)(L, logistic_regression=torch.tanh, **k),
        {"targets": ("y", Y)},
    ),
    (lambda k: losses.CACLoss(4)(L.abs(), **k), {"target": ("y", Y)}),
    (lambda k: losses.CACLoss(4).distance(**k), {"x": ("z", L)}),
    (lambda k: losses.CACLoss.score(**k), {"distance": ("distances", L.abs())}),
    (
        lambda k: losses.CenterLoss(4, 4)(**k),
        {"distmat": ("distances", L.abs()), "target": ("y", Y)},
    ),
    (lambda k: losses.MCHADLoss(4, 4)(y=Y, **k), {"distmat": ("distances", L.abs())}),
    (lambda k: losses.IILoss(4, 4)(**k), {"x": ("z", Z), "target": ("y", Y)}),
    (lambda k: losses.IILoss(4, 4).distance(**k), {"x": ("z", Z)}),
    (lambda k: losses.IILoss(4, 4).predict(**k), {"x": ("z", Z)}),
    (lambda k: losses.RunningCenters(4, 4).update(Z, **k), {"target": ("y", Y)}),
    (
        lambda k: losses.RunningCenters(4, 4).calculate_centers(**k),
        {"embeddings": ("x", Z), "target": ("y", Y)},
    ),
)


@pytest.mark.parametrize("number", range(len(WORDS)))
def test_losses_take_pytorch_oods_words(number):
    call, words = WORDS[number]
    values = []
    for given in (
        {word: value for word, (_, value) in words.items()},
        {ours: value for ours, value in words.values()},
    ):
        torch.manual_seed(0)
        values.append(call(given))
    torch.testing.assert_close(*values)


def test_an_argument_under_two_names_is_refused():
    with pytest.raises(TypeError, match="given twice"):
        losses.OutlierExposureLoss()(L, y=Y, target=Y)
    with pytest.raises(TypeError):
        losses.OutlierExposureLoss()(L, Y, target=Y)
    with pytest.raises(TypeError, match="given twice"):
        compat.KNN(None, k=2).fit_features(x=Z, z=Z)


def test_radius_and_centre_of_any_call():
    from ood.compat.loss import DeepSVDDLoss

    centre = losses.ClassCenters(1, 4)
    for y in (None, torch.where(Y == 1, -1, Y)):
        for radius in (0.0, torch.tensor(1.5)):
            theirs = peer.loss.DeepSVDDLoss.svdd_loss(Z, centre, radius, y)
            torch.testing.assert_close(DeepSVDDLoss.svdd_loss(Z, centre, radius, y=y), theirs)


S = torch.rand(6)
MIXED = torch.tensor([0, 1, 2, -1, -1, -2])
WRONG = {
    "one argument too many": lambda m: m.AUROC().update(S, MIXED, MIXED),
    "an unknown name": lambda m: m.AUROC().update(S, labels=MIXED, predictions=MIXED),
    "a name twice": lambda m: m.AUROC().update(S, scores=S, labels=MIXED),
    "a list": lambda m: m.AUROC().update([0.1, 0.2], torch.tensor([0, -1])),
    "a word": lambda m: m.AUROC().update("scores", MIXED),
    "labels missing": lambda m: m.AUROC().update(S),
    "labels None": lambda m: m.OODMetrics().update(S, None),
    "other shapes": lambda m: m.AUROC().update(S, MIXED[:4]),
    "no data": lambda m: m.AUROC().compute(),
    "empty batches": lambda m: m.OODMetrics().update(S[:0], MIXED[:0]).compute(),
    "void entries only": lambda m: m.AUROC(void_label=2).update(S[2:3], MIXED[2:3]).compute(),
    "no OOD": lambda m: m.AUROC().update(S[:3], MIXED[:3]).compute(),
    "no ID": lambda m: m.AUPR().update(S[3:], MIXED[3:]).compute(),
    "accuracy without ID": lambda m: m.Accuracy().update(MIXED[3:], MIXED[3:]).compute(),
    "NaN": lambda m: m.FPRAtTPR().update(S * torch.nan, MIXED).compute(),
    "NaN in AUTC": lambda m: m.AUTC().update(S * torch.nan, MIXED).compute(),
    "negative void label": lambda m: m.AUROC(void_label=-1),
    "tpr in per cent": lambda m: m.FPRAtTPR(95),
    "tpr of NaN": lambda m: m.FPRAtTPR(float("nan")),
    "tpr a word": lambda m: m.FPRAtTPR("0.95"),
    "unknown positive class": lambda m: m.AUPR("both"),
    "collection of nothing": lambda m: m.MetricCollection([]),
    "two of one name": lambda m: m.MetricCollection([m.AUROC(), m.AUROC()]),
    "nested collections": lambda m: m.MetricCollection([m.MetricCollection([m.AUROC()])]),
    "per image inside": lambda m: m.MetricCollection([m.PerImage(m.AUROC())]),
    "a device inside": lambda m: m.MetricCollection([m.AUROC(device="cpu")]),
    "collection by position": lambda m: m.MetricCollection([m.AUROC()]).update(S, MIXED),
    "collection, unknown name": lambda m: m.MetricCollection([m.AUROC()]).update(
        scores=S, labels=MIXED, other=S
    ),
    "predictions once": lambda m: (
        m.OODMetrics().update(S, MIXED, MIXED).update(scores=S, labels=MIXED)
    ),
    "per image, no images": lambda m: m.PerImage(m.AUROC()).update(S[0], MIXED[0]),
    "per image of per image": lambda m: m.PerImage(m.PerImage(m.AUROC())),
    "per image, void inside": lambda m: m.PerImage(m.AUROC(void_label=3)),
    "per image, nothing yet": lambda m: m.PerImage(m.AUROC()).compute(),
    "per image, all skipped": lambda m: (
        m.PerImage(m.AUROC()).update(S[None, :3], MIXED[None, :3]).compute()
    ),
    "segmentation, too many": lambda m: m.OODSegmentationMetrics().update(S, MIXED, MIXED),
    "functions, other shapes": lambda m: m.functional.auroc(S, MIXED[:3]),
    "functions, tpr": lambda m: m.functional.fpr_at_tpr(S, MIXED, 1.5),
    "functions, no OOD": lambda m: m.functional.aupr(S[:3], MIXED[:3]),
    "functions, positive": lambda m: m.functional.pr_curve(S, MIXED, "both"),
    "functions, constant": lambda m: m.functional.autc(torch.ones(6), MIXED),
    "functions, infinite": lambda m: m.functional.autc(S / 0, MIXED),
    "functions, no accuracy": lambda m: m.functional.accuracy(MIXED[3:], MIXED[3:]),
    "oscr without OOD": lambda m: m.oscr_score(S[:3], MIXED[:3], MIXED[:3]),
    "oscr, other shapes": lambda m: m.oscr_score(S, MIXED[:3], MIXED),
    "calibration, norm": lambda m: m.calibration_error(S, S > 0.5, p="3"),
    "calibration, beta": lambda m: m.calibration_error(S, S > 0.5, beta=0),
    "calibration of nothing": lambda m: m.calibration_error(S[:0], S[:0]),
    "calibration, NaN": lambda m: m.calibration_error(S * torch.nan, S),
    "aurra of nothing": lambda m: m.aurra(S[:0], S[:0]),
    "aurra, other shapes": lambda m: m.aurra(S, S[:2]),
    "openness below 0": lambda m: m.calc_openness(-1, 2, 3),
    "openness of nothing": lambda m: m.calc_openness(1, 0, 0),
}


@pytest.mark.parametrize("what", WRONG)
def test_metrics_raise_pytorch_oods_exceptions(what):
    with pytest.raises(Exception) as theirs:  # noqa: B017
        WRONG[what](peer.metrics)
    with pytest.raises(theirs.type) as ours:
        WRONG[what](compat.metrics)
    assert len(str(ours.value).splitlines()) == 1


WRONG_HELPERS = {
    "buffer of a list": lambda u: u.TensorBuffer().append("a", [1]),
    "buffer without the name": lambda u: u.TensorBuffer().get("a"),
    "unknown reduction": lambda u: u.apply_reduction(S, "middle"),
    "labels of two axes": lambda u: u.drop_unknown(MIXED[None], S[None]),
    "loader without ID": lambda u: u.extract_features([(Z[:1], MIXED[3:4])], nn.Identity(), None),
    "averages without ID": lambda u: u.extract_feature_avg(
        [(Z[:1, :, None, None], MIXED[3:4])], nn.Identity(), None
    ),
    "a class on both sides": lambda u: u.TargetMapping({1}, {1}),
    "an unknown class": lambda u: u.TargetMapping({1}, {2})[7],
}


@pytest.mark.parametrize("what", WRONG_HELPERS)
def test_helpers_raise_pytorch_oods_exceptions(what):
    with pytest.raises(Exception) as theirs:  # noqa: B017
        WRONG_HELPERS[what](peer.utils)
    with pytest.raises(theirs.type):
        WRONG_HELPERS[what](compat.utils)
