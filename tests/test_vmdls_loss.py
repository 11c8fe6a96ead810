"""VMDLS losses against the authors' values, loops and finite differences; the margin's ramp."""

import math

import pytest
import torch

from ood.methods.vmdls.loss import kl_loss, margin_at, metric_loss

MARGINS = (0.15, 1.15, 4.15, 32.15)


def loop_loss(z, labels, margin, m, normalise):
    """Python floats, one triplet after the other."""
    points = [
        (row / max(row.norm().item(), 1e-12) if normalise else row).tolist() for row in z.double()
    ]
    d = [[math.dist(a, b) for b in points] for a in points]
    losses = []
    for a, ya in enumerate(labels.tolist()):
        for p, yp in enumerate(labels.tolist()):
            for n, yn in enumerate(labels.tolist()):
                if a != p and ya == yp and yn != ya:
                    losses.append(max(d[a][p] - d[a][n] + m, 0) + max(margin - d[a][n], 0))
    above = [value for value in losses if value > 0]
    return sum(above) / len(above) if above else 0.0


@pytest.mark.parametrize(
    "labels",
    [[0, 0, 0, 1, 1, 1, 2, 2, 2], [0, 1, 2] * 3, [0, 0, 0, 0, 1, 1, 2], [3, 1, 1, 0, 3, 3, 1, 0]],
    ids=str,
)
@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("margin", MARGINS)
def test_metric_loss_equals_explicit_loops(labels, normalise, margin):
    labels = torch.tensor(labels)
    z = (
        torch.randn(len(labels), 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        + labels[:, None]
    )
    for m in (0.1, 0.7):
        ours = metric_loss(z, labels, margin, triplet_margin=m, normalise=normalise).item()
        assert ours == pytest.approx(loop_loss(z, labels, margin, m, normalise), rel=1e-12)


@pytest.mark.parametrize(
    "key", [f"{kind}_margin_{m}" for kind in ("normalised", "plain") for m in MARGINS]
)
def test_metric_loss_equals_the_authors_values(golden, key):
    values = golden("vmdls")["triplet"]
    kind, _, margin = key.split("_")
    ours = metric_loss(
        torch.tensor(values["embeddings"]),
        torch.tensor(values["labels"]),
        float(margin),
        triplet_margin=values["margin"],
        normalise=kind == "normalised",
    )
    assert ours.item() == pytest.approx(values["loss_by_neg_margin"][key], rel=1e-5)


def test_kl_equals_the_authors_value(golden):
    values = golden("vmdls")["kl"]
    z, mu, std, means = (torch.tensor(values[name]) for name in ("z", "mu", "std", "class_means"))
    labels = torch.tensor(values.get("labels", golden("vmdls")["triplet"]["labels"]))
    assert kl_loss(z, mu, std, labels, means, values["prior_std"]).item() == pytest.approx(
        values["kl_before_coefficient"], rel=1e-5
    )


def test_four_points_by_hand():
    """Right angles: unit vectors of class 0 at 0 and 90 degrees, of class 1 at 180 and 270."""
    z = torch.tensor([[2.0, 0], [0, 3.0], [-1.0, 0], [0, -5.0]])
    near, far = math.sqrt(2), 2.0  # every anchor: d_ap = sqrt 2, one negative at 2, one at sqrt 2
    expected = (
        near - near + 0.1 + 1.5 - near
    )  # the triplet with the near negative; the far one has no loss at M = 1.5
    assert near - far + 0.1 < 0 and 1.5 - far < 0
    assert metric_loss(z, torch.tensor([0, 0, 1, 1]), 1.5).item() == pytest.approx(
        expected, rel=1e-6
    )


@pytest.mark.parametrize(
    "labels", [[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 1, 1]], ids=["balanced", "unbalanced"]
)
@pytest.mark.parametrize("normalise", [True, False])
def test_gradients(labels, normalise):
    z = torch.randn(
        6, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64, requires_grad=True
    )
    labels = torch.tensor(labels)
    for margin in (0.15, 1.15, 32.15):
        assert torch.autograd.gradcheck(
            lambda t: metric_loss(t, labels, margin, normalise=normalise), (z,)
        )


def test_kl_gradients_and_loops():
    g = torch.Generator().manual_seed(5)
    z, mu, log_std = (
        torch.randn(7, 4, generator=g, dtype=torch.float64, requires_grad=True) for _ in range(3)
    )
    means, labels = (
        torch.randn(5, 4, generator=g, dtype=torch.float64),
        torch.tensor([0, 3, 3, 0, 0, 4, 3]),
    )
    assert torch.autograd.gradcheck(
        lambda a, b, s: kl_loss(a, b, s.exp(), labels, means), (z, mu, log_std)
    )
    normal = torch.distributions.Normal
    per_class = [
        (
            normal(mu[labels == c], log_std[labels == c].exp()).log_prob(z[labels == c])
            - normal(means[c], torch.full_like(means[c], 0.1)).log_prob(z[labels == c])
        ).mean()
        for c in (0, 3, 4)
    ]
    assert kl_loss(z, mu, log_std.exp(), labels, means).item() == pytest.approx(
        torch.stack(per_class).mean().item(), rel=1e-12
    )


def test_kl_is_zero_in_expectation_at_the_prior_and_a_mean_over_dimensions():
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(10).repeat_interleave(4000)
    means = torch.randn(10, 8, generator=g)
    mu, std = means[labels], torch.full((40_000, 8), 0.1)
    z = mu + std * torch.randn(40_000, 8, generator=g)
    assert kl_loss(z, mu, std, labels, means).item() == pytest.approx(0, abs=1e-5)
    wide = lambda t: torch.cat([t, t], 1)
    off = kl_loss(z, mu, std, labels, means + 1).item()
    assert kl_loss(wide(z), wide(mu), wide(std), labels, wide(means + 1)).item() == pytest.approx(
        off, rel=1e-5
    )


@pytest.mark.parametrize(
    "labels", [[0, 0, 0, 0], [0, 1, 2, 3], [2]], ids=["one class", "all different", "one image"]
)
def test_a_step_without_a_triplet_costs_nothing(labels):
    z = torch.randn(len(labels), 3, requires_grad=True)
    loss = metric_loss(z, torch.tensor(labels), 1.15)
    loss.backward()
    assert loss.item() == 0 and z.grad.isfinite().all() and not z.grad.any()


def test_triplets_beyond_both_hinges_cost_nothing():
    z = torch.tensor([[1.0, 0], [1, 0.01], [-1, 0], [-1, 0.01]], requires_grad=True)
    loss = metric_loss(z, torch.tensor([0, 0, 1, 1]), 0.15)
    loss.backward()
    assert loss.item() == 0 and not z.grad.any()


def test_equal_points_have_finite_gradients():
    z = torch.ones(6, 3, requires_grad=True)
    metric_loss(z, torch.tensor([0, 0, 0, 1, 1, 1]), 1.15).backward()
    assert z.grad.isfinite().all()
    zero = torch.zeros(6, 3, requires_grad=True)
    metric_loss(zero, torch.tensor([0, 0, 0, 1, 1, 1]), 1.15).backward()
    assert zero.grad.isfinite().all()


def test_order_of_the_batch_does_not_matter_and_the_margin_does():
    g = torch.Generator().manual_seed(2)
    labels = torch.arange(4).repeat_interleave(5)
    z, order = torch.randn(20, 6, generator=g), torch.randperm(20, generator=g)
    assert metric_loss(z[order], labels[order], 1.15).item() == pytest.approx(
        metric_loss(z, labels, 1.15).item(), rel=1e-6
    )
    settings = ({}, {"margin": 1.6}, {"triplet_margin": 0.9}, {"normalise": False})
    assert (
        len({metric_loss(z, labels, **{"margin": 1.15, **changed}).item() for changed in settings})
        == 4
    )


def test_normalised_distances_make_a_large_margin_inert():
    labels = torch.arange(4).repeat_interleave(4)
    z = torch.randn(16, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    gradients = {}
    for normalise in (True, False):
        for margin in (4.15, 32.15):
            point = z.clone().requires_grad_()
            metric_loss(point, labels, margin, normalise=normalise).backward()
            gradients[normalise, margin] = point.grad
    assert torch.allclose(gradients[True, 4.15], gradients[True, 32.15], atol=1e-12)
    assert not torch.allclose(gradients[False, 4.15], gradients[False, 32.15], atol=1e-6)


@pytest.mark.parametrize("start, largest, end", [(1, 32, 32.15), (10, 32, 32.15), (40, 64, 64.15)])
def test_margin_ramp(start, largest, end):
    ramp = [margin_at(e, start, largest) for e in range(start + 80)]
    assert (
        ramp[:start] == [0.15] * start
        and ramp[start] == pytest.approx(1.15)
        and ramp[start + 1] == pytest.approx(2.15)
    )
    assert ramp[start + largest - 2] == pytest.approx(end - 1) and ramp[
        start + largest - 1
    ] == ramp[-1] == pytest.approx(end)
    margin, counted = 0.15, []
    for e in range(start + 80):  # the released loop
        if e >= start and margin <= largest:
            margin += 1.0
        counted.append(margin)
    assert ramp == pytest.approx(counted)


@pytest.mark.parametrize("jump, largest", [(0.5, 3), (0.25, 1.15), (3.0, 10), (0.0, 5), (1.0, 0.1)])
def test_margin_ramp_equals_the_released_loop(jump, largest):
    margin = 0.15
    for e in range(60):
        if e >= 5 and margin <= largest and jump:
            margin += jump
        assert margin_at(e, 5, largest, jump) == pytest.approx(margin, abs=1e-9)


def test_warm_start_adds_one_jump_to_the_largest_margin():
    assert [margin_at(e, 2, 32, 1.0, first=32.0) for e in range(4)] == [32.0, 32.0, 33.0, 33.0]
