"""Every registered detector: the contract; the six of part one against explicit loops."""
import numpy as np
import pytest
import torch

from ood import detectors, statistics
from ood.config import InputError
from ood.detectors import ImageDetector
from ood.detectors.base import chunked_score
from ood.detectors.shaping import contribution_mask
from ood.outputs import Head, Outputs

ARRAY_DETECTORS = [n for n in detectors.names() if not issubclass(type(detectors.create(n)), ImageDetector)]


def outputs(n, seed=0, shift=0.0, classes=6, dimension=24):
    """ID-like outputs: features around class centres, rectified; `shift` moves them towards none of them."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.eye(classes).repeat_interleave(dimension // classes, 1) * 4
    labels = torch.arange(n) % classes
    features = (centres[labels] * (1 - shift) + torch.randn(n, dimension, generator=generator)).relu()
    head = Head(centres / 4, torch.linspace(-0.2, 0.2, classes))
    return Outputs(features, head(features), labels, head)


@pytest.fixture(scope="module")
def train():
    return outputs(600, seed=1)


@pytest.mark.parametrize("name", ARRAY_DETECTORS)
def test_contract(name, train):
    detector = detectors.create(name).fit(train)
    known, novel = outputs(200, seed=2), outputs(200, seed=3, shift=0.9)
    scores = chunked_score(detector, known)
    assert scores.shape == (200,) and torch.isfinite(scores).all()
    assert chunked_score(detector, novel).mean() > scores.mean(), "OOD must score higher"
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(chunked_score(detector, known[order]), scores[order], rtol=1e-5, atol=1e-6)
    pieces = torch.cat([chunked_score(detector, c) for c in known.chunks(7)])
    torch.testing.assert_close(pieces, scores, rtol=1e-5, atol=1e-6)
    again = chunked_score(detectors.create(name).fit(train), known)
    assert torch.equal(again, scores), "fitting twice gives the same"


@pytest.mark.parametrize("name", ARRAY_DETECTORS)
def test_nan_is_refused(name, train):
    bad = outputs(20)
    bad.features[3, 2] = float("nan")
    bad.logits[3] = float("nan")
    with pytest.raises(InputError, match="NaN"):
        chunked_score(detectors.create(name).fit(train), bad)


@pytest.mark.parametrize("name, value", [
    ("msp:temperature=3.0", None), ("energy:temperature=3.0", None), ("react:percentile=60", None), ("react:threshold=0.5", None),
    ("dice:percentile=30", None), ("dice:clip=0.5", None), ("dice:clip_percentile=50", None), ("dice_react:clip_percentile=40", None),
])
def test_every_hyperparameter_changes_the_score(name, value, train):
    short, changed = detectors.parse(name)
    known = outputs(100, seed=5)
    default, other = (chunked_score(detectors.create(short, **h).fit(train), known) for h in ({}, changed))
    assert not torch.allclose(default, other)


def test_formulas_against_explicit_loops(train):
    known = outputs(40, seed=7)
    mean = train.features.double().mean(0)
    weight, bias = known.head.weight, known.head.bias
    contribution = weight.double() * mean
    threshold = np.percentile(contribution.numpy().flatten(), 70)
    clip = np.quantile(train.features.numpy(), 0.9)
    found = {n: chunked_score(detectors.create(n, **h).fit(train), known)
             for n, h in (("msp", {}), ("maxlogit", {}), ("energy", {}), ("dice", {"percentile": 70}), ("react", {}), ("dice_react", {"percentile": 70}))}
    for i in range(40):
        z, h = known.logits[i].double(), known.features[i].double()
        exp = [float(torch.exp(v)) for v in z]
        sparse, clipped_sparse, clipped = [], [], []
        for c in range(len(bias)):
            kept = [float(weight[c, d]) if contribution[c, d] > threshold else 0.0 for d in range(len(h))]
            sparse.append(sum(k * float(x) for k, x in zip(kept, h)) + float(bias[c]))
            clipped_sparse.append(sum(k * min(float(x), clip) for k, x in zip(kept, h)) + float(bias[c]))
            clipped.append(sum(float(w) * min(float(x), clip) for w, x in zip(weight[c], h)) + float(bias[c]))
        energy = lambda values: -np.log(np.sum(np.exp(values)))   # noqa: E731
        expected = {"msp": -max(exp) / sum(exp), "maxlogit": -max(map(float, z)), "energy": energy(z.numpy()),
                    "dice": energy(sparse), "react": energy(clipped), "dice_react": energy(clipped_sparse)}
        for name, value in expected.items():
            assert found[name][i].item() == pytest.approx(value, rel=1e-5), name


def test_energy_of_dice_equals_the_released_broadcast(train):
    """The authors multiply (B, 1, D) by (C, D) and sum; ours is one matrix product."""
    detector = detectors.create("dice", percentile=90).fit(train)
    known = outputs(50, seed=8)
    released = (known.features[:, None, :] * (detector.mask * known.head.weight)).sum(2) + known.head.bias
    torch.testing.assert_close(detector.score(known), -released.logsumexp(1), rtol=1e-5, atol=1e-6)


def test_percentile_zero_still_drops_the_minimum():
    weight = torch.arange(1.0, 13.0).view(3, 4)
    mask, _ = contribution_mask(weight, torch.ones(4), 0)
    assert mask.sum() == 11 and mask[0, 0] == 0


@pytest.mark.parametrize("percentile, c10, kept10, c100, kept100", [
    (10, -0.0617806, 3078, -0.190132, 30780), (50, -1.50725e-06, 1710, -0.000742713, 17100), (70, 4.04722e-05, 1026, 0.0123792, 10260),
    (90, 0.0153672, 342, 0.165968, 3420), (95, 0.223994, 171, 0.31381, 1710), (99, 0.775373, 35, 0.734338, 342)])
def test_dice_masks_of_the_authors_files(reference, percentile, c10, kept10, c100, kept100):
    for name, threshold, kept in (("10", c10, kept10), ("100", c100, kept100)):
        weights = torch.load(reference / "dice" / f"cifar{name}_densenet_checkpoint_100.pth.tar", weights_only=True, map_location="cpu")
        mean = torch.from_numpy(np.load(reference / "dice" / f"CIFAR-{name}_densenet_feat_stat.npy"))
        mask, found = contribution_mask(weights["state_dict"]["fc.weight"], mean, percentile)
        assert found == pytest.approx(threshold, rel=1e-5)
        assert int(mask.sum()) == kept
        if percentile == 90:
            per_class, features = mask.sum(1), int((mask.sum(0) > 0).sum())
            assert (per_class.min(), per_class.max(), features) == ((26, 40, 88) if name == "10" else (22, 51, 204))


def test_quantile_is_exact_over_chunks():
    values = torch.randn(3000, 31, generator=torch.Generator().manual_seed(0)) * 3
    values[values.abs() < 0.4] = 0
    made = Outputs(values, values[:, :2], torch.zeros(3000), Head(values[:2], values[0, :2]))
    for q in (0.0, 1e-5, 0.1, 0.5, 0.73, 0.9, 1.0):
        assert statistics.quantile(made, q) == pytest.approx(float(np.quantile(values.double().numpy(), q)), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("make, words", [
    (lambda: detectors.create("enrgy"), "did you mean 'energy'"),
    (lambda: detectors.create("dice", percent=3), "did you mean 'percentile'"),
    (lambda: detectors.create("odin", unit="pixels"), "did you mean 'pixel'"),
    (lambda: detectors.parse("dice:90"), "key=value"),
])
def test_misspelt_names(make, words):
    with pytest.raises(InputError, match=words):
        make()


def test_stored_feature_mean(tmp_path, train):
    np.save(tmp_path / "mean.npy", train.features.double().mean(0).numpy())
    stored = detectors.create("dice", feature_mean=str(tmp_path / "mean.npy"))
    assert not stored.requires_fit
    known = outputs(30, seed=9)
    assert torch.equal(stored.fit(train[:0]).score(known), detectors.create("dice").fit(train).score(known))
    np.save(tmp_path / "short.npy", np.zeros(3))
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object))
    for file, words in (("short.npy", r"need \(24,\)"), ("object.npy", "plain .npy"), ("none.npy", "no feature mean")):
        with pytest.raises(InputError, match=words):
            detectors.create("dice", feature_mean=str(tmp_path / file)).fit(train)
