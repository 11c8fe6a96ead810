"""Every objective on tensors, against pytorch-ood's or against explicit loops.

Loops serve where pytorch-ood lacks the loss or differs from the paper.
"""

import inspect
import math

import pytest
import torch
from loss_toys import CLASSES, SIDE, labels, make
from torch import nn
from torch.nn import functional as F

from ood import losses
from ood.config import InputError
from ood.detectors.shaping import SCALE
from ood.losses.base import squared_distances

peer = pytest.importorskip("pytorch_ood.loss", reason="the oracle pytorch-ood is not installed")
pytestmark = pytest.mark.filterwarnings("ignore:Discarding samples")
torch.manual_seed(0)
LOGITS, FEATURES, PIXELS = (
    torch.randn(12, CLASSES) * 3,
    torch.randn(12, SIDE),
    torch.randn(3, CLASSES, 5, 2),
)
Y = labels()
Y_PIXELS = torch.randint(-1, CLASSES, (3, 5, 2))
SCORES = LOGITS.square()


def equal(ours, theirs, rtol=1e-5):
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=1e-6)


# ---- the same as pytorch-ood ---------------------------------------------------------------------

PAIRS = {
    "CrossEntropyLoss": ({}, {}),
    "LogitNorm": ({"t": 0.3}, {}),
    "EnergyRegularizedLoss": ({"alpha": 0.3, "margin_in": -4.0, "margin_out": -2.0}, {}),
    "EntropicOpenSetLoss": ({}, {}),
    "BackgroundClassLoss": ({"n_classes": CLASSES - 1}, {}),
    "OutlierExposureLoss": ({"alpha": 0.7}, {"balance": "batch"}),
}


@pytest.mark.parametrize("reduction", ("mean", "sum", "none"))
@pytest.mark.parametrize("name", PAIRS)
def test_losses_on_logits(name, reduction):
    args, ours_only = PAIRS[name]
    ours = getattr(losses, name)(**args, **ours_only, reduction=reduction)
    theirs = getattr(peer, name)(**args, reduction=reduction)
    y = Y.clamp(max=CLASSES - 2) if name == "BackgroundClassLoss" else Y
    x, x2 = LOGITS.clone().requires_grad_(), LOGITS.clone().requires_grad_()
    equal(ours(x, y), theirs(x2, y))
    ours(x, y).sum().backward(), theirs(x2, y).sum().backward()
    equal(x.grad, x2.grad)
    if name != "LogitNorm":
        y = Y_PIXELS.clamp(max=CLASSES - 2) if name == "BackgroundClassLoss" else Y_PIXELS
        equal(ours(PIXELS, y), theirs(PIXELS, y))


SHAPES = {
    "n_classes": CLASSES,
    "n_dim": SIDE,
    "n_embedding": SIDE,
    "full_train_loss": 0.4,
    "margin": 2.0,
}
DIFFERENT = {  # arguments that give pytorch-ood's numbers, see the docstring of ood.losses
    "OutlierExposureLoss": {"balance": "batch"},
    "CACLoss": {"squared": True},
    "MCHADLoss": {"weight_center": 1 / CLASSES},
    "CenterRegularizationLoss": {},
}


def from_defaults(kind, name, **more):
    """Make a loss of a package from its defaults, with the same random numbers every time.

    Returns: (the loss, what its forward takes after y).
    """
    torch.manual_seed(5)
    weights, fc = nn.Linear(CLASSES, 1), nn.Linear(SIDE, CLASSES)
    nn.init.uniform_(weights.weight)
    modules = {"logistic_regression": nn.Linear(1, 2), "weights_energy": weights, "fc": fc}
    needed = [
        key
        for key, p in inspect.signature(getattr(peer, name).__init__).parameters.items()
        if p.default is p.empty and key != "self"
    ]
    torch.manual_seed(6)
    loss = getattr(kind, name)(**{key: {**SHAPES, **modules}[key] for key in needed}, **more)
    if name in ("CenterLoss", "MCHADLoss"):  # pytorch-ood draws its centres twice
        loss.centers.params.data = FEATURES[:CLASSES] + 0.5
    return loss, (nn.Linear(1, 1),) if name == "EnergyMarginLoss" else ()


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, cls in vars(peer).items()
        if inspect.isclass(cls) and issubclass(cls, nn.Module)
    ],
)
def test_defaults_are_pytorch_oods(name):
    """The same call with defaults alone gives the same number; `DIFFERENT` lists the exceptions."""
    confidence = torch.rand(12, 1, generator=torch.Generator().manual_seed(0))
    given = {
        "ObjectosphereLoss": (LOGITS, FEATURES),
        "ConfidenceLoss": (LOGITS, confidence),
        "VirtualOutlierSynthesizingRegLoss": (LOGITS, FEATURES),
        "IILoss": (FEATURES,),
        "DeepSVDDLoss": (FEATURES,),
        "DeepSADLoss": (FEATURES,),
        "CenterRegularizationLoss": (SCORES,),
    }.get(name, (LOGITS,))
    y = torch.where(Y < 0, Y, CLASSES - 1) if name == "CACLoss" else Y
    found = []
    for kind, more in ((losses, DIFFERENT.get(name, {})), (peer, {}), (losses, {})):
        loss, phi = from_defaults(kind, name, **more)
        x = given
        if hasattr(loss, "distance") and name not in ("IILoss", "DeepSVDDLoss", "DeepSADLoss"):
            x = (loss.distance(LOGITS if name == "CACLoss" else FEATURES),)
        elif name == "CenterRegularizationLoss" and kind is losses and not found:
            x = (SCORES.square(),)
        elif name == "BackgroundClassLoss":
            x = (torch.cat((LOGITS, LOGITS[:, :1]), 1),)
        found.append(loss(*x, y, *phi))
    equal(found[0], found[1])
    same = torch.allclose(found[2], found[1], rtol=1e-5, atol=1e-6)
    assert (name in DIFFERENT) != same, "the list is complete, and has none too many"


def test_running_centers_are_pytorch_oods_where_every_class_is_in_every_batch():
    from pytorch_ood.model import RunningCenters

    ours, theirs = losses.RunningCenters(CLASSES, SIDE), RunningCenters(CLASSES, SIDE)
    for seed in range(3):
        x = torch.randn(12, SIDE, generator=torch.Generator().manual_seed(seed))
        equal(ours.update(x, Y.clamp_min(0)), theirs.update(x, Y.clamp_min(0)))
    equal(ours.centers, theirs.centers)
    equal(ours(FEATURES), theirs(FEATURES))


@pytest.mark.parametrize("reduction", ("mean", "sum", "none"))
def test_objectosphere(reduction):
    args = dict(alpha=0.2, xi=2.5, reduction=reduction)
    equal(
        losses.ObjectosphereLoss(**args)(LOGITS, FEATURES, Y),
        peer.ObjectosphereLoss(**args)(LOGITS, FEATURES, Y),
    )
    equal(losses.ObjectosphereLoss.score(LOGITS), peer.ObjectosphereLoss.score(LOGITS))


@pytest.mark.parametrize("classes, dim", ((CLASSES, SIDE), (SIDE, SIDE)))
def test_center(classes, dim):
    ours, theirs = (
        losses.CenterLoss(classes, dim, radius=1.5),
        peer.CenterLoss(classes, dim, radius=1.5),
    )
    if classes == dim:
        equal(ours.centers.params, theirs.centers.params)
    theirs.load_state_dict(ours.state_dict())
    equal(ours.distance(FEATURES), theirs.distance(FEATURES))
    equal(ours(ours.distance(FEATURES), Y), theirs(theirs.distance(FEATURES), Y))
    assert not losses.CenterLoss(3, 2, fixed=True).centers.params.requires_grad


def test_ii_in_training_and_evaluation():
    ours, theirs = losses.IILoss(CLASSES, SIDE, alpha=0.4), peer.IILoss(CLASSES, SIDE, alpha=0.4)
    for seed in range(3):  # every class in every batch: there the running means agree
        x = torch.randn(12, SIDE, generator=torch.Generator().manual_seed(seed))
        equal(ours(x, Y), theirs(x, Y))
    equal(ours.centers.centers, theirs.centers.centers)
    equal(ours.eval()(FEATURES, Y), theirs.eval()(FEATURES, Y))
    equal(ours.distance(FEATURES), theirs.distance(FEATURES))
    equal(ours.predict(FEATURES), theirs.predict(FEATURES))


@pytest.mark.parametrize("reduction", ("mean", "sum", "none"))
def test_hyperspheres(reduction):
    center = torch.randn(SIDE)
    ours, theirs = (
        kind.DeepSVDDLoss(SIDE, reduction, radius=1.2, center=center) for kind in (losses, peer)
    )
    equal(ours(FEATURES, Y), theirs(FEATURES, Y))
    equal(ours(FEATURES), theirs(FEATURES))
    equal(ours.distance(FEATURES), theirs.distance(FEATURES))
    ours, theirs = (
        kind.DeepSADLoss(SIDE, eta=0.6, reduction=reduction, center=center)
        for kind in (losses, peer)
    )
    equal(ours(FEATURES, Y), theirs(FEATURES, Y))
    equal(ours.distance(FEATURES), theirs.distance(FEATURES))


def vos_modules():
    weights = nn.Linear(CLASSES, 1)
    nn.init.uniform_(weights.weight, -0.3, 1)
    return nn.Linear(1, 2), weights


@pytest.mark.parametrize("reduction", ("mean", "sum", "none"))
def test_vos_with_real_outliers(reduction):
    modules = vos_modules()
    ours, theirs = (
        kind.VOSRegLoss(*modules, alpha=0.4, reduction=reduction) for kind in (losses, peer)
    )
    equal(ours(LOGITS, Y), theirs(LOGITS, Y))
    equal(ours(PIXELS, Y_PIXELS), theirs(PIXELS, Y_PIXELS))


def test_vos_with_virtual_outliers():
    """The same queues and random numbers give pytorch-ood's outliers, without a density."""
    fc = nn.Linear(SIDE, CLASSES)
    args = dict(alpha=0.4, sample_number=20, select=2, sample_from=50)
    modules = vos_modules()
    ours, theirs = (
        losses.VirtualOutlierSynthesizingRegLoss(*modules, fc, **args),
        peer.VirtualOutlierSynthesizingRegLoss(*modules, fc, **args),
    )
    for step in range(13):  # the queues are full after ten
        x = torch.randn(CLASSES * 2 + 1, SIDE, generator=torch.Generator().manual_seed(step))
        y = torch.cat((torch.arange(CLASSES).repeat(2), torch.tensor([-1])))
        found = []
        for loss in (ours, theirs):
            torch.manual_seed(step)
            found.append(loss(fc(x), x, y))
        equal(*found, rtol=1e-4)
        assert (found[0] > F.cross_entropy(fc(x[:-1]), y[:-1]) + 1e-3) == (step >= 10)
    theirs.data_dict.copy_(ours.queue)
    torch.manual_seed(1)
    virtual = ours.draw()
    torch.manual_seed(1)
    expected = theirs._sample_virtual_outliers()
    equal(
        virtual.reshape(CLASSES, 2, SIDE).sum(1),
        expected.reshape(CLASSES, 2, SIDE).sum(1),
        rtol=1e-4,
    )


def test_vos_queue_keeps_the_newest():
    loss, _ = make("vos", sample_number=3)
    loss.seen.zero_()
    rows = torch.arange(1.0, 11).double()[:, None].expand(10, SIDE)
    loss.store(rows[:4], torch.tensor([0, 1, 0, 0]))
    loss.store(rows[4:], torch.tensor([0, 0, 2, 1, 0, 0]))
    assert sorted(loss.queue[0, :, 0].tolist()) == [6, 9, 10] and sorted(
        loss.queue[1, :2, 0].tolist()
    ) == [2, 8]
    assert loss.seen.tolist() == [7, 2, 1, 0]


def test_energy_margin_and_its_multipliers():
    phi, network = nn.Linear(1, 1), nn.Linear(SIDE, CLASSES)
    args = dict(
        full_train_loss=0.4,
        eta=0.7,
        false_alarm_cutoff=0.1,
        in_constraint_weight=1.3,
        ce_tol=1.5,
        lr_lam=0.5,
        out_constraint_weight=0.8,
    )
    ours, theirs = losses.EnergyMarginLoss(**args), peer.EnergyMarginLoss(**args)
    loader = [(FEATURES[:5], Y[:5]), (FEATURES[5:8], Y[5:8])]
    for scale in (3.0, 0.01, 0.01):  # constraints violated, then held: both branches of psi
        phi.bias.data.fill_(scale - 2)
        network.weight.data.mul_(scale)
        x = LOGITS * scale
        equal(ours(x, Y, phi), theirs(x, Y, phi))
        (
            ours.update_hyperparameters(network, loader, phi),
            theirs.update_hyperparameters(network, loader, phi),
        )
        for name in ("lam", "lam2", "in_constraint_weight", "ce_constraint_weight"):
            equal(getattr(ours, name), getattr(theirs, name))
    assert ours.lam != 0 and ours.lam2 != 0 and ours.in_constraint_weight > 1.3


def test_energy_margin_of_a_network_without_training_loss():
    """0 is a cross-entropy that pytorch-ood takes."""
    found = [
        kind.EnergyMarginLoss(full_train_loss=0)(LOGITS, targets=Y, logistic_regression=phi)
        for phi in [nn.Linear(1, 1)]
        for kind in (losses, peer)
    ]
    equal(*found)


def test_energy_margin_refuses_a_batch_before_it_knows_the_first_loss():
    """Unknown L_0 would be a finite value with NaN gradients; known: given, measured, or loaded."""
    loss, phi = losses.EnergyMarginLoss(), nn.Linear(1, 1)
    with pytest.raises(InputError, match="full_train_loss"):
        loss(LOGITS, Y, phi)
    loaded = losses.EnergyMarginLoss()
    loaded.load_state_dict(losses.EnergyMarginLoss(full_train_loss=0.4).state_dict())
    loss.epoch_begins(1, lambda: [(FEATURES, LOGITS, Y)], phi)
    for known in (loss, loaded):
        x = LOGITS.clone().requires_grad_()
        known(x, Y, phi).backward()
        assert x.grad.isfinite().all()
    equal(loss.full_train_loss, F.cross_entropy(LOGITS[Y >= 0], Y[Y >= 0]))
    loaded.load_state_dict(losses.EnergyMarginLoss().state_dict())
    with pytest.raises(InputError, match="full_train_loss"):
        loaded(LOGITS, Y, phi)


# ---- not in pytorch-ood, or different from the paper there --------------------------------------


def test_outlier_exposure_averages_each_part_over_its_own():
    """The paper has two means; pytorch-ood divides both sums by the size of the whole batch."""
    x = LOGITS.double()
    inside = [
        -math.log(math.exp(x[i, Y[i]]) / sum(math.exp(v) for v in x[i]))
        for i in range(12)
        if Y[i] >= 0
    ]
    outside = [
        -sum(math.log(math.exp(v) / sum(math.exp(u) for u in x[i])) for v in x[i]) / CLASSES
        for i in range(12)
        if Y[i] < 0
    ]
    expected = sum(inside) / len(inside) + 0.5 * sum(outside) / len(outside)
    assert losses.OutlierExposureLoss()(x, Y).item() == pytest.approx(expected)
    assert peer.OutlierExposureLoss()(LOGITS, Y).item() == pytest.approx(
        (sum(inside) + 0.5 * sum(outside)) / 12
    )


def test_cac_leaves_only_the_own_class_out():
    """pytorch-ood sums over the classes 0..C-2 for every y: the two agree for y = C-1 only."""
    ours = losses.CACLoss(CLASSES, magnitude=3.0, alpha=0.2)
    d = ours.distance(LOGITS)
    equal(
        d,
        torch.stack(
            [torch.stack([(z - 3 * e).norm() for e in torch.eye(CLASSES)]) for z in LOGITS]
        ),
    )
    terms = [
        0.2 * d[i, c]
        + math.log(1 + sum(math.exp(d[i, c] - d[i, k]) for k in range(CLASSES) if k != c))
        for i, c in enumerate(Y.tolist())
        if c >= 0
    ]
    assert ours(d, Y).item() == pytest.approx(sum(terms).item() / len(terms), rel=1e-5)
    theirs, squared = (
        peer.CACLoss(CLASSES, magnitude=3.0, alpha=0.2),
        losses.CACLoss(CLASSES, 3.0, 0.2, squared=True),
    )
    equal(squared.distance(LOGITS), theirs.distance(LOGITS))
    small, last = squared.distance(LOGITS) / 9, torch.full((12,), CLASSES - 1)
    equal(squared(small, last), theirs(small, last))
    assert abs(squared(small, Y) - theirs(small, Y)) > 1e-3
    nearest = min(
        d[0, c] * (1 - math.exp(-d[0, c]) / sum(math.exp(-v) for v in d[0])) for c in range(CLASSES)
    )
    assert ours.score(d)[0].item() == pytest.approx(nearest.item(), rel=1e-5)


def test_mchad_by_its_formula():
    """Every term by loops; `ood.losses` lists what pytorch-ood does otherwise."""
    loss = losses.MCHADLoss(
        CLASSES, SIDE, radius=1.1, margin=2.0, weight_center=0.5, weight_nll=0.7, weight_oe=0.3
    )
    d = [[((z - mu) ** 2).sum().item() for mu in loss.centers.params] for z in FEATURES]
    equal(loss.distance(FEATURES), torch.tensor(d))
    inside, outside = [i for i in range(12) if Y[i] >= 0], [i for i in range(12) if Y[i] < 0]
    near = sum(max(0, d[i][Y[i]] - 1.1**2) for i in inside) / len(inside)
    nll = sum(
        math.log(1 + sum(math.exp(d[i][Y[i]] - d[i][k]) for k in range(CLASSES) if k != Y[i]))
        for i in inside
    ) / len(inside)
    far = sum(sum(max(0, 3.1**2 - v) for v in d[i]) for i in outside) / len(outside)
    assert far > 0 and loss(loss.distance(FEATURES), Y).item() == pytest.approx(
        0.5 * near + 0.7 * nll + 0.3 * far, rel=1e-5
    )
    weight, bias = loss.classifier()
    equal((FEATURES @ weight.T + bias).softmax(1), F.softmin(loss.distance(FEATURES), 1), rtol=1e-4)


def test_running_centers_of_a_rare_class():
    """A class counts its own batches only: it does not drift to 0 in batches without it."""
    ours = losses.RunningCenters(2, 1)
    ours.update(torch.tensor([[2.0], [4.0], [6.0]]), torch.tensor([0, 0, 1]))
    ours.update(torch.tensor([[5.0]]), torch.tensor([0]))
    ours.update(torch.tensor([[8.0]]), torch.tensor([1]))
    assert ours.centers.flatten().tolist() == [4.0, 7.0]


def test_t2fnorm():
    loss = losses.T2FNormLoss(CLASSES, SIDE, t=0.2)
    logits = torch.stack([loss.fc.weight @ (h / h.norm() / 0.2) + loss.fc.bias for h in FEATURES])
    equal(loss(FEATURES, Y), F.cross_entropy(logits[Y >= 0], Y[Y >= 0]))
    weight, bias = loss.classifier()
    equal(FEATURES @ weight.T + bias, loss.fc(FEATURES / 0.2))


@pytest.mark.parametrize("prune", (False, True))
def test_ish_changes_the_gradient_of_the_head_only(prune):
    fc = nn.Linear(10, CLASSES)
    h, y = torch.rand(6, 10, requires_grad=True), torch.arange(6) % CLASSES
    plain = F.cross_entropy(fc(h), y)
    (
        expected_h,
        expected_b,
    ) = torch.autograd.grad(plain, (h, fc.bias), retain_graph=True)
    error = (fc(h).softmax(1) - F.one_hot(y, CLASSES)) / 6
    shaped = []
    for row in h.detach():
        top = row.sort(descending=True).values[:3]  # 70 % of 10 are left out
        kept = torch.where(row >= top[-1], row, 0) if prune else row
        shaped.append(kept * math.exp(row.sum() / top.sum()))
    loss = losses.ISHLoss(fc, percentile=70, prune=prune)(h, y)
    loss.backward()
    equal(loss, plain), equal(h.grad, expected_h), equal(fc.bias.grad, expected_b)
    equal(fc.weight.grad, error.detach().T @ torch.stack(shaped))


@pytest.mark.parametrize(
    "dim, percentile, kept", ((100, 90, 10), (512, 85, 77), (10, 70, 3), (4, 99, 1))
)
def test_ish_keeps_as_many_as_scale(dim, percentile, kept):
    """n - round(n p / 100); int(100 * (1 - 90 / 100)) would be 9."""
    h = torch.rand(3, dim)
    loss = losses.ISHLoss(nn.Linear(dim, CLASSES), percentile=percentile, prune=True)
    assert (loss.shaped(h) > 0).sum(1).tolist() == [kept] * 3
    loss = losses.ISHLoss(nn.Linear(dim, CLASSES), percentile=percentile)
    equal(loss.shaped(h), SCALE(percentile=percentile).shape(h))


def test_confidence_hints_and_budget():
    y, c = torch.zeros(2000, dtype=torch.long), torch.full((2000, 1), 0.5)
    logits = torch.zeros(2000, 2)
    loss = losses.ConfidenceLoss(alpha=0.0, hints=0.5)
    torch.manual_seed(0)
    hinted, plain = -math.log(0.5 * 0.5 + 0.5), -math.log(0.5)
    assert loss(logits, c, y).item() == pytest.approx((hinted + plain) / 2, abs=0.02)
    assert losses.ConfidenceLoss(alpha=0.0)(logits, c, y).item() == pytest.approx(hinted, rel=1e-5)
    loss = losses.ConfidenceLoss(alpha=0.1, budget=0.3)
    before = loss(logits, c, y)  # -log 0.5 = 0.69 is above the budget
    assert loss.alpha.item() == pytest.approx(0.1 / 0.99) and before.item() == pytest.approx(
        hinted + 0.1 * math.log(2), rel=1e-5
    )
    loss(logits, c + 0.4, y)
    assert loss.alpha.item() == pytest.approx(0.1 / 0.99 / 1.01)
    loss.eval()(logits, c, y)
    assert loss.alpha.item() == pytest.approx(0.1 / 0.99 / 1.01)


def test_cider_by_its_formula():
    loss = losses.CIDERLoss(CLASSES, 3, t=0.5, weight=1.5, momentum=0.8)
    loss.prototypes = F.normalize(torch.randn(CLASSES, 3))
    mu, z = [p.clone() for p in loss.prototypes], F.normalize(torch.randn(12, 3))
    for row, c in zip(z, Y):
        if c >= 0:
            mu[c] = F.normalize(0.8 * mu[c] + 0.2 * row, dim=0)
    inside = [i for i in range(12) if Y[i] >= 0]
    near = sum(
        -math.log(math.exp(z[i] @ mu[Y[i]] / 0.5) / sum(math.exp(z[i] @ m / 0.5) for m in mu))
        for i in inside
    ) / len(inside)
    apart = (
        sum(
            math.log(
                sum(math.exp(mu[i] @ mu[j] / 0.5) for j in range(CLASSES) if j != i) / (CLASSES - 1)
            )
            for i in range(CLASSES)
        )
        / CLASSES
    )
    assert loss(z, Y).item() == pytest.approx(1.5 * near + apart, rel=1e-5)
    equal(loss.prototypes, torch.stack(mu))
    kept = loss.prototypes.clone()
    loss.eval()(z, Y)
    assert torch.equal(loss.prototypes, kept)


def test_rotation():
    loss = losses.RotationLoss(weight=0.3)
    images, y = torch.rand(3, 1, 4, 4), torch.tensor([2, -1, 0])
    turned, _, further = loss.stage(images, y)
    assert (
        further == ()
        and torch.equal(turned[3:6], torch.stack([image.rot90(1, (1, 2)) for image in images]))
        and torch.equal(turned[:3], images)
    )
    logits, rotations = torch.randn(12, 5), torch.randn(12, 4)
    classes = (F.cross_entropy(logits[0:1], y[0:1]) + F.cross_entropy(logits[2:3], y[2:3])) / 2
    parts = [
        F.cross_entropy(rotations[3 * r + i][None], torch.tensor([r]))
        for r in range(4)
        for i in (0, 2)
    ]
    equal(loss(logits, rotations, y), classes + 0.3 * sum(parts) / 8)


def test_openmix():
    loss = losses.OpenMixLoss(5, alpha=10.0, gamma=0.4)
    images, y = torch.rand(5, 1, 2, 2), torch.tensor([3, -1, 0, 1, -1])
    mixed, kept, (lam, partners) = loss.stage(images, y)
    assert (
        0 < lam < 1
        and kept.tolist() == [3, 0, 1]
        and partners.tolist() == [0, 1]
        and len(mixed) == 5
    )
    equal(mixed[:3], images[[0, 2, 3]])
    equal(mixed[3:], lam * images[[0, 2]] + (1 - lam) * images[[1, 4]])
    logits = torch.randn(5, 6)
    parts = [
        lam * F.cross_entropy(logits[3 + k][None], kept[k : k + 1])
        + (1 - lam) * F.cross_entropy(logits[3 + k][None], torch.tensor([5]))
        for k in (0, 1)
    ]
    equal(
        loss(logits, kept, lam, partners), F.cross_entropy(logits[:3], kept) + 0.4 * sum(parts) / 2
    )
    spread = torch.tensor([loss.stage(images, y)[2][0] for _ in range(500)])
    assert spread.mean().item() == pytest.approx(
        0.5, abs=0.03
    ) and spread.std().item() == pytest.approx(1 / math.sqrt(84), abs=0.02)  # Beta(10, 10)


def test_background_class_says_which_label_is_too_large():
    with pytest.raises(ValueError, match="label 3 of 3 classes"):
        losses.BackgroundClassLoss(3)(LOGITS, torch.full((12,), 3))


def test_plain_cross_entropy_is_torchs_to_the_bit():
    y = Y.clamp_min(0)
    x, x2 = LOGITS.clone().requires_grad_(), LOGITS.clone().requires_grad_()
    ours, theirs = losses.CrossEntropyLoss()(x, y), F.cross_entropy(x2, y)
    ours.backward(), theirs.backward()
    assert torch.equal(ours, theirs) and torch.equal(x.grad, x2.grad)


def test_fit_radius_of_the_soft_boundary():
    loss = losses.DeepSVDDLoss(SIDE, center=torch.zeros(SIDE))
    x = torch.randn(500, SIDE)
    loss.fit_radius(x, nu=0.2)
    assert (x.norm(dim=1) > loss.radius).float().mean().item() == pytest.approx(0.2, abs=0.01)


def test_squared_distances_of_near_points_far_from_zero():
    """Features of size 1000, 0.08 apart: |x|^2 + |c|^2 - 2 x.c in float32 would be 0."""
    centres = 1000 * torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    x = (centres[[0, 3]] + 0.01).requires_grad_()
    d = squared_distances(x, centres)
    expected = ((x[:, None].double() - centres.double()) ** 2).sum(2)
    assert d.dtype == torch.float32
    torch.testing.assert_close(d.double(), expected, rtol=1e-5, atol=1e-6)
    d.gather(1, torch.tensor([[0], [3]])).sum().backward()
    torch.testing.assert_close(x.grad, 2 * (x.detach() - centres[[0, 3]]), rtol=1e-5, atol=1e-6)
    assert squared_distances(centres, centres).diagonal().abs().max() < 1e-6
