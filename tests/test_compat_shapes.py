"""Shapes and types that pytorch-ood's detectors take: each works here too, or is refused."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ood import compat
from ood.config import InputError

peer = pytest.importorskip("pytorch_ood.detector")
N, C = 12, 4
LABELS = torch.arange(N) % C
NETWORKS = {  # name -> (network, shape of the inputs, shape of a score per input)
    "vectors": (nn.Linear(10, C), (10,), ()),
    "sequences": (nn.Sequential(nn.Flatten(), nn.Linear(30, C)), (3, 10), ()),
    "images": (nn.Sequential(nn.Flatten(), nn.Linear(108, C)), (3, 6, 6), ()),
    "volumes": (nn.Sequential(nn.Flatten(), nn.Linear(81, C)), (3, 3, 3, 3), ()),
    "maps": (nn.Conv2d(3, C, 1), (3, 4, 5), (4, 5)),
    "lines": (nn.Conv1d(3, C, 1), (3, 10), (10,)),
    "one position": (nn.Sequential(nn.Conv2d(3, C, 1), nn.AdaptiveAvgPool2d(1)), (3, 6, 6), (1, 1)),
}
ON_LOGITS = {
    "MaxSoftmax": lambda d, net: d.MaxSoftmax(net),
    "EnergyBased": lambda d, net: d.EnergyBased(net),
    "MaxLogit": lambda d, net: d.MaxLogit(net),
    "Entropy": lambda d, net: d.Entropy(net),
    "ODIN": lambda d, net: d.ODIN(net, eps=0.1, temperature=2.0),
    "ODIN with std": lambda d, net: d.ODIN(net, eps=0.1, norm_std=[0.5]),
}
ON_FEATURES = {
    "Mahalanobis": lambda: compat.Mahalanobis(None),
    "RMD": lambda: compat.RMD(None),
    "KNN": lambda: compat.KNN(None, k=2),
    "GMM": lambda: compat.GMM(None, reg=1e-2),
    "NNGuide": lambda: compat.NNGuide(None, nn.Linear(C, C), k=2),
    "fDBD": lambda: compat.fDBD(None, nn.Linear(C, C)),
    "NCI": lambda: compat.NCI(None, nn.Linear(C, C)),
    "PNML": lambda: compat.PNML(None, nn.Linear(C, C)),
    "SHE": lambda: compat.SHE(None, nn.Linear(C, C)),
    "DICE": lambda: compat.DICE(None, torch.randn(C, C), torch.zeros(C), p=0.5),
    "ViM": lambda: compat.ViM(None, 2, torch.randn(C, C), torch.zeros(C)),
    "LTS": lambda: compat.LTS(None, nn.Linear(C, C)),
    "MCM": lambda: compat.MCM(None, torch.randn(3, C)),
}
ON_MAPS = ("ASH", "SCALE", "ReAct", "VRA", "RankFeat")
EXACT = dict(rtol=1e-5, atol=1e-6, check_dtype=False)


def inputs(*shape, seed=0):
    return torch.randn(N, *shape, generator=torch.Generator().manual_seed(seed))


def loader(x):
    return DataLoader(TensorDataset(x, LABELS), batch_size=N)


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("name", ON_LOGITS)
def test_inputs_of_every_shape(name, kind):
    """ODIN once flattened the scores, and took the axis of channels for that of the batch."""
    network, shape, places = NETWORKS[kind]
    ours, theirs = (ON_LOGITS[name](d, network).predict(inputs(*shape)) for d in (compat, peer))
    assert ours.shape == (N, *places)
    torch.testing.assert_close(ours, theirs.detach(), **EXACT)


@pytest.mark.parametrize("kind", NETWORKS)
def test_odin_moves_along_the_gradient(kind):
    network, shape, _ = NETWORKS[kind]
    std = [0.1 * (i + 1) for i in range(shape[0])]
    ours, theirs = (
        d.odin_preprocessing(network, inputs(*shape), eps=0.1, norm_std=std) for d in (compat, peer)
    )
    torch.testing.assert_close(ours, theirs, **EXACT)


@pytest.mark.parametrize("kind", [kind for kind in NETWORKS if kind not in ("maps", "lines")])
def test_gradients_layers_and_repeats_of_every_shape(kind):
    network, shape, places = NETWORKS[kind]
    x = inputs(*shape)
    last = network[0] if kind == "one position" else network
    made = {
        "GradNorm": compat.GradNorm(network),
        "GradUncertainty": compat.GradUncertainty(network),
        "MahalanobisODIN": compat.MahalanobisODIN(network, eps=0.1),
        "NACUE": compat.NACUE(network, [last]),
        "MultiMahalanobis": compat.MultiMahalanobis([network]),
        "Gram": compat.Gram(lambda z: z.flatten(1), [network], C),
    }
    for name, detector in made.items():
        scores = detector.fit(loader(x)).predict(x)
        assert scores.shape == (N,) and scores.isfinite().all(), name
    assert compat.MCD(network, samples=2).predict(x).shape == (N, *places)


def test_gram_rows_of_vectors_are_pytorch_oods():
    for z in (inputs(C), inputs(C, 5), inputs(C, 3, 2)):
        for power in (1, 2, 3):
            theirs = peer.Gram._gram_vector(z, power)
            torch.testing.assert_close(compat.layers._gram_rows(z, power), theirs, **EXACT)


@pytest.mark.parametrize("name", ON_FEATURES)
def test_features_of_another_shape_are_refused(name):
    """Once (N, D, 1) gave N * D scores."""
    make, x = ON_FEATURES[name], inputs(C)
    torch.manual_seed(0)
    detector = make().fit_features(x, LABELS)
    torch.testing.assert_close(
        detector.predict_features(x[:, :, None, None]), detector.predict_features(x)
    )
    for wrong in (x[0], inputs(C, 2), inputs(C, 2, 2), inputs(C - 1)):
        with pytest.raises(InputError, match="shape"):
            detector.predict_features(wrong)
    assert detector.predict_features(x[:0]).shape == (0,)
    if detector.requires_fit:
        for labels in (LABELS[:3], LABELS.repeat(2), LABELS[:, None]):
            with pytest.raises(InputError, match="labels have the shape"):
                make().fit_features(x, labels)
        with pytest.raises(InputError, match="shape"):
            make().fit_features(inputs(C, 2, 2), LABELS)


@pytest.mark.parametrize("name", ("TemperatureScaling", "KLMatching", "OpenMax"))
def test_fits_to_maps_of_logits_take_a_label_per_position(name):
    options = {"tailsize": 2, "alpha": 2} if name == "OpenMax" else {}
    make = lambda: getattr(compat, name)(None, **options)
    logits = inputs(C, 2, 3)
    labels = logits.argmax(1)
    rows = logits.movedim(1, -1).flatten(0, -2)
    scores = make().fit_logits(logits, labels).predict_logits(logits)
    expected = make().fit_logits(rows, labels.flatten()).predict_logits(rows)
    torch.testing.assert_close(scores, expected.view(N, 2, 3))
    with pytest.raises(InputError, match="label per position"):
        make().fit_logits(logits, LABELS)
    with pytest.raises(InputError, match="shape"):
        make().fit_logits(rows, labels.flatten()).predict_logits(inputs(C + 1))
    with pytest.raises(InputError, match="shape"):
        make().fit_logits(inputs())


def test_other_wrong_shapes_are_refused():
    linear = nn.Linear(10, C)
    stages = [nn.Linear(10, 5), nn.Linear(5, C)]
    with torch.no_grad():
        first = stages[0](inputs(10))
        several = compat.MultiMahalanobis(stages).fit(loader(inputs(10)))
    vra = compat.VRA(None, nn.Flatten()).fit_feature_maps(inputs(3, 4, 4), LABELS)
    for call in (
        lambda: compat.MaxSoftmax(None).predict_logits(torch.zeros(C)),
        lambda: compat.MaxSoftmax.score(torch.zeros(C)),
        lambda: compat.KNN(None).fit_features(inputs(C).to(torch.complex64)),
        lambda: compat.GEN.score(torch.zeros(C)),
        lambda: compat.GEN(None).predict_logits(torch.tensor(1.0)),
        lambda: compat.EnergyBased(None).predict_logits(torch.zeros(N, 0)),
        lambda: compat.ODIN(linear).predict(torch.zeros(10)),
        lambda: compat.ODIN(linear, norm_std=[1.0, 2.0]).predict(inputs(10)),
        lambda: compat.ODIN(linear).predict(torch.zeros(N, 10, dtype=torch.uint8)),
        lambda: compat.MahalanobisODIN(nn.Conv2d(3, C, 1)).fit(loader(inputs(3, 4, 4))),
        lambda: compat.MahalanobisODIN(linear, norm_std=[1.0] * 3).fit(loader(inputs(10)))(
            inputs(10)
        ),
        lambda: compat.KNN(nn.Conv2d(3, C, 1), k=2).fit(loader(inputs(3, 4, 4))),
        lambda: compat.LTS(None, linear).predict_features(inputs(9)),
        lambda: compat.ReAct(None, nn.Flatten(), threshold=1.0).predict_feature_maps(torch.ones(3)),
        lambda: compat.RankFeat(None, nn.Flatten()).predict_feature_maps(inputs(5)),
        lambda: vra.predict_feature_maps(inputs(3, 2, 8)),
        lambda: compat.VRA(None, nn.Flatten()).fit_feature_maps(inputs(3, 4, 4), LABELS[:4]),
        lambda: several.predict_structured([first]),
        lambda: several.predict_structured([first, first]),
        lambda: compat.Gram(nn.Identity(), [nn.Conv2d(3, C, 1)], C).fit(loader(inputs(3, 4, 4))),
    ):
        with pytest.raises(InputError, match="shape|norm_std|complex"):
            call()


def test_hyper_parameters_have_ranges():
    net = nn.Linear(10, C)
    for call, words in (
        (lambda: compat.ODIN(net, temperature=0), "temperature is 0"),
        (lambda: compat.ODIN(net).set_hyperparameters(temperature=-1.0), "temperature is -1"),
        (lambda: compat.ODIN(net, eps=-0.1), "eps is -0.1"),
        (lambda: compat.MahalanobisODIN(net, eps=float("nan")), "eps|magnitude"),
        (lambda: compat.GradNorm(net, micro_batch_size=0), "micro_batch_size is 0"),
        (lambda: compat.GradNorm(net, micro_batch_size=2.5), "micro_batch_size is 2.5"),
        (lambda: compat.GradNorm(net, temperature=float("inf")), "temperature"),
        (lambda: compat.MCD(net, samples=0), "samples"),
        (lambda: compat.MCD(net, mode="mode"), "mode"),
        (lambda: compat.DICE(None, torch.eye(C), torch.zeros(C), p=50), "fraction"),
        (lambda: compat.ASH(None, None, percentile=-0.1), "fraction"),
        (lambda: compat.ASH(None, None, variant="ash-x"), "variant"),
    ):
        with pytest.raises(ValueError, match=words):
            call()


@pytest.mark.parametrize("kind", (torch.float16, torch.bfloat16, torch.float64, torch.int64))
def test_numbers_of_every_type(kind):
    """Halves were once refused as infinite because their sum is; bfloat16 has no NumPy type."""
    x = (30 * inputs(C).abs()).to(kind)
    exact = x.double()
    for name, make in ON_FEATURES.items():
        torch.manual_seed(0)
        scores = make().fit_features(x, LABELS).predict_features(x)
        torch.manual_seed(0)
        expected = make().fit_features(exact, LABELS).predict_features(exact)
        torch.testing.assert_close(scores, expected, rtol=1e-3, atol=1e-3, msg=name)
    for name in ("MaxSoftmax", "EnergyBased", "MaxLogit", "Entropy", "GEN"):
        scores = getattr(compat, name)(None).predict_logits(x)
        expected = getattr(compat, name)(None).predict_logits(exact)
        torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4, msg=name)
    maps = (10 * inputs(C, 6, 6).abs() + 100).to(kind)
    assert kind != torch.float16 or maps.sum().isinf()
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(C, C))
    head = head.to(kind if kind.is_floating_point else torch.float32)
    for name in ON_MAPS:
        detector = getattr(compat, name)(None, head).fit_feature_maps(maps, LABELS)
        scores = detector.predict_feature_maps(maps)
        assert scores.shape == (N,) and scores.isfinite().all(), name
        if kind.is_floating_point:
            with pytest.raises(InputError, match="NaN or infinite"):
                detector.predict_feature_maps(torch.full_like(maps, torch.inf))
