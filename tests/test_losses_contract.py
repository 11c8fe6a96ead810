"""What holds for every objective.

Gradients, batches without outliers or without ID rows, extreme inputs, one class, the registry.
"""

import copy
import inspect
import math
import typing

import numpy as np
import pytest
import torch
from loss_toys import CLASSES, NAMES, SMALL, further, inputs, labels, make, value
from torch import nn
from torch.func import functional_call

from ood import losses
from ood.config import InputError
from ood.losses.base import HEADS, INPUTS, OUTLIERS, parameters
from ood.losses.objective import build

ELSEWHERE = {
    ("openmix", "alpha"),
    ("openmix", "gamma"),
    ("ish", "percentile"),
    ("ish", "prune"),
}  # in tests of their own
LEARNS = [name for name in NAMES if losses.get(name).outliers != "ignored"]


@pytest.mark.parametrize("name", NAMES)
def test_gradient(name):
    """Against finite differences in float64, along random directions.

    It covers the inputs and all that the loss learns. Each evaluation is on a copy, because some
    losses remember. The gradient of ISH on the head is another one on purpose.
    """
    args = {"cac": {"magnitude": 2.0}, "cider": {"weight": 0.0}}.get(name, {})
    loss, modules = make(name, **args)
    loss.train(
        name != "vos"
    )  # in training its queues, constants to autograd, move with the features
    y = labels()

    class Call(nn.Module):
        def __init__(self):
            super().__init__()
            self.loss, self.others = loss, nn.ModuleList(modules)

        def forward(self, *given):
            return value(name, self.loss, self.others, given, y)

    own = {
        key: p.detach().clone().requires_grad_()
        for key, p in Call().named_parameters()
        if p.requires_grad and name != "ish"
    }
    given = inputs(loss, y)

    def call(*tensors):
        return functional_call(
            copy.deepcopy(Call()), dict(zip(own, tensors[len(given) :])), tensors[: len(given)]
        )

    assert bool(own) == (name in ("center", "mchad", "t2fnorm", "vos", "vos_reg", "energy_margin"))
    assert torch.autograd.gradcheck(call, (*given, *own.values()), fast_mode=True)
    if name == "cider":  # the other term takes the prototypes as constants
        loss, _ = make(name)
        loss.prototypes.normal_()
        loss.eval()
        assert torch.autograd.gradcheck(call, given, fast_mode=True)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("outliers", (0, 12))
def test_batches_without_outliers_or_without_inliers(name, outliers):
    loss, modules = make(name)
    y = labels(outliers)
    given = inputs(loss, y)
    found = value(name, loss, modules, given, y)
    assert found.dim() == 0 and found.isfinite() and found.requires_grad
    found.backward()
    assert all(x.grad is None or x.grad.isfinite().all() for x in given)


@pytest.mark.parametrize("name", NAMES)
def test_outliers_change_what_the_loss_says_they_do(name):
    """Ignored: the value is that of the ID rows alone. Else: other outliers, another value."""
    loss, modules = make(name, **({"margin": 3.0} if name == "mchad" else {}))
    y = labels()
    given = [x.detach() for x in inputs(loss, y)]
    if "rotations" in loss.inputs or name == "openmix":  # whose rows are not one per label
        return
    other = [torch.where((y < 0)[:, None], 0.3 * x + 0.1, x) for x in given]
    first, second = (value(name, copy.deepcopy(loss), modules, x, y) for x in (given, other))
    if name in LEARNS:
        assert first != second
    else:
        alone = value(name, copy.deepcopy(loss), modules, [x[y >= 0] for x in given], y[y >= 0])
        assert first == second and first.item() == pytest.approx(alone.item())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", (0.0, 1e-8, 1e4))
def test_extreme_inputs(name, scale):
    """Zeros, tiny and large values give finite losses and gradients in float32."""
    loss, modules = make(name)
    loss.float()
    for module in modules:
        module.float()
    y = labels()
    given = [x.detach().float().requires_grad_() for x in inputs(loss, y, scale=scale)]
    found = value(name, loss, modules, given, y)
    found.backward()
    learned = [p for module in (loss, *modules) for p in module.parameters()]
    assert found.isfinite() and all(
        x.grad is None or x.grad.isfinite().all() for x in (*given, *learned)
    )


@pytest.mark.parametrize("size", (1.0, 1e3))
@pytest.mark.parametrize("name", ("center", "cac", "mchad", "ii", "deep_svdd", "deep_sad"))
def test_on_the_centre(name, size):
    """On the centre the gradient is finite; 0.01 beside it the distance is right, in float32."""
    loss, _ = make(name)
    loss.float()
    centres = next(
        t for key, t in loss.state_dict().items() if "centers" in key or "_center." in key
    )
    centres.copy_(
        size * torch.randn(centres.shape, generator=torch.Generator().manual_seed(1))
        if name != "cac"
        else size * centres
    )
    y = (
        torch.arange(len(centres))
        if name not in ("deep_svdd", "deep_sad")
        else torch.zeros(1, dtype=torch.long)
    )
    z = centres.clone().requires_grad_()
    value(name, loss, (), [z], y).backward()
    assert z.grad.isfinite().all()
    d = loss.distance(centres + 0.01)
    own = (d if d.dim() == 1 else d.diagonal()) ** (0.5 if name != "cac" else 1)
    torch.testing.assert_close(
        own, torch.full_like(own, 0.01 * centres.shape[1] ** 0.5), rtol=0.02, atol=0
    )


@pytest.mark.parametrize(
    "name",
    ("cross_entropy", "logitnorm", "outlier_exposure", "energy_bounded", "entropic_open_set"),
)
def test_overflowing_logits(name):
    """Logits of 1e18, whose squares still fit, and of 1e25 where the loss does not square them."""
    loss = losses.create(name)
    for scale in (1e18, 1e25) if name != "energy_bounded" else (1e18,):
        x = (torch.randn(12, CLASSES) * scale).requires_grad_()
        found = loss(x, labels())
        found.backward()
        assert found.isfinite() and x.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_one_class(name):
    """Nothing to separate: finite, and the cross-entropy's part is 0."""
    loss, modules = make(name, classes=1)
    y = labels(classes=1)
    found = value(name, loss, modules, inputs(loss, y, classes=1), y)
    assert found.isfinite() and abs(found) < 1e3
    if name in ("cross_entropy", "logitnorm", "t2fnorm", "ish"):
        assert found == 0


@pytest.mark.parametrize("name", NAMES)
def test_every_argument_changes_the_value(name):
    """Except arguments for shapes or modules, and those that act outside of forward."""
    elsewhere = {
        "reduction",
        "fixed",
        "n_dim",
        "lr_lam",
        "penalty_mult",
        "constraint_tol",
        "full_train_loss",
    }
    first = {
        "mchad": {"radius": 0.5, "margin": 3.0},
        "confidence": {"budget": None},
        "cider": {"momentum": 0.95},
    }.get(name, {})
    changed = {
        "balance": "batch",
        "squared": True,
        "prune": True,
        "budget": 0.1,
        "percentile": 50.0,
        "sample_number": 5,
        "select": 2,
        "sample_from": 7,
        "hints": 0.2,
        "eps": 0.5,
        "momentum": 0.3,
        "xi": 5.0,
        "magnitude": 3.0,
    }
    y = labels()
    for key, parameter in parameters(name).items():
        if (
            key in elsewhere
            or key == "center"
            or parameter.default is parameter.empty
            or (name, key) in ELSEWHERE
        ):
            continue
        args = {
            **first,
            key: changed[key]
            if key in changed
            else (first.get(key, parameter.default) or 0) + 0.75,
        }
        results = []
        for given in (first, args):
            loss, modules = make(name, **given)
            if name == "center" and key == "magnitude":
                results.append(loss.centers.params.norm())
                continue
            x = inputs(loss, y)
            results += (
                [value(name, loss, modules, x, y)]
                if key != "budget"
                else [value(name, loss, modules, x, y) * 0 + loss.alpha]
            )
        assert results[0] != results[1], key


# ---- registry ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_what_a_loss_says_about_itself(name):
    cls = losses.get(name)
    assert (
        cls.name == name
        and cls.outliers in OUTLIERS
        and cls.head in HEADS
        and set(cls.inputs) <= set(INPUTS)
    )
    assert set(cls.recipe) <= set(parameters(name))
    text = inspect.getdoc(cls)
    assert text.splitlines()[0].endswith(".") and (
        name == "cross_entropy" or "Source:" in text or "baseline" in text
    )
    leading = list(inspect.signature(cls.forward).parameters)[1:]
    assert leading[len(cls.inputs)] == "y" and len(leading) >= len(cls.inputs) + 1 + len(
        cls.modules
    )
    loss, _ = make(name)
    assert (
        "centre" in str(cls.brings) or "anchor" in str(cls.brings) or "prototypes" in cls.brings
    ) == any(word in key for key in loss.state_dict() for word in ("center", "prototypes"))
    if cls.head == "computed":
        weight, bias = loss.classifier()
        assert weight.shape == (CLASSES, 6) and bias.shape == (CLASSES,)
    copied, _ = make(name)
    copied.load_state_dict(loss.state_dict())


def test_twenty_two_losses():
    assert {
        "cross_entropy",
        "logitnorm",
        "center",
        "cac",
        "ii",
        "confidence",
        "deep_svdd",
        "deep_sad",
        "outlier_exposure",
        "energy_bounded",
        "entropic_open_set",
        "objectosphere",
        "background_class",
        "mchad",
        "vos",
        "vos_reg",
        "energy_margin",
        "ish",
        "t2fnorm",
        "cider",
        "rotation",
        "openmix",
    } == set(NAMES)


def test_names_and_arguments_of_pytorch_ood():
    """Every class of its loss package is here, with the same arguments and defaults."""
    peer = pytest.importorskip("pytorch_ood.loss")
    classes = {
        n: c for n, c in vars(peer).items() if inspect.isclass(c) and issubclass(c, nn.Module)
    }
    assert len(classes) == 17
    for name, cls in classes.items():
        ours, theirs = (
            inspect.signature(c.__init__).parameters for c in (getattr(losses, name), cls)
        )
        assert list(theirs) == list(ours)[: len(theirs)], name
        for key, parameter in theirs.items():
            assert key == "full_train_loss" or parameter.default == ours[key].default, (name, key)


def test_errors_name_the_nearest():
    with pytest.raises(
        InputError, match="unknown loss 'outlier_exposre'.*did you mean 'outlier_exposure'"
    ):
        losses.create("outlier_exposre")
    with pytest.raises(InputError, match="takes no 'alhpa'.*did you mean 'alpha'"):
        losses.create("energy_bounded", alhpa=1)
    with pytest.raises(InputError, match="needs n_classes"):
        losses.create("cac")


@pytest.mark.parametrize(
    "name, args, words",
    (
        ("logitnorm", {"t": 0}, "t is 0"),
        ("outlier_exposure", {"alpha": "much"}, "finite number"),
        ("outlier_exposure", {"alpha": math.nan}, "finite number"),
        ("outlier_exposure", {"balance": "both"}, "expectation, batch"),
        ("outlier_exposure", {"alpha": -1}, "at least 0"),
        ("vos", {"select": 1.5}, "select must be a whole number"),
        ("cac", {"n_classes": 3}, "follows from the network"),
        ("deep_svdd", {"center": 1}, "follows from the network"),
        ("energy_bounded", {"reduction": "mid"}, "mean, sum, none"),
        ("ish", {"prune": 1}, "prune must be a bool"),
        ("ish", {"percentile": 100}, "percentile is 100; it must be at least 0 and below 100"),
        ("confidence", {"budget": "big"}, "budget"),
        ("center", {"wieght": 1}, "did you mean 'weight'"),
        ("energy_margin", {"full_train_loss": -1}, "at least 0"),
        ("deep_sad", {"eps": 0}, "eps is 0; it must be above 0"),
        ("cider", {"momentum": 1}, "momentum is 1; it must be at least 0 and below 1"),
        ("center", {"weight": -1}, "weight is -1"),
        ("vos", {"sample_number": 10**12}, "sample_number is 1000000000000"),
        ("vos", {"select": 30, "sample_from": 20}, "select must be at most sample_from"),
        ("mchad", {"margin": -1}, "at least 0"),
    ),
)
def test_bad_arguments_are_refused_before_any_work(name, args, words):
    with pytest.raises(InputError, match=words):
        losses.check(name, args)


def numbers_of(name):
    """Arguments of a loss that take a number: {name: whether it is whole}."""
    hints = typing.get_type_hints(losses.get(name).__init__)
    kinds = {key: typing.get_args(hint) or (hint,) for key, hint in hints.items()}
    return {key: int in kind for key, kind in kinds.items() if int in kind or float in kind}


def outside(allowed, whole):
    """Numbers just outside a range, and values that are no number."""
    step = lambda bound: 1 if whole else max(1e-6, 1e-6 * abs(bound))
    least = allowed.above if allowed.low is None else allowed.low - step(allowed.low)
    most = allowed.below if allowed.high is None else allowed.high + step(allowed.high)
    return (least, most, math.nan, math.inf, -math.inf, "much", True, 1j, *([1.5] * whole))


@pytest.mark.parametrize("name", NAMES)
def test_every_number_has_a_range_that_is_checked(name):
    """Defaults and recipes lie inside; what lies outside is refused before anything is made."""
    cls = losses.get(name)
    fc = nn.Linear(6, CLASSES)
    needed = {"n_classes": 4, "n_dim": 6, "n_embedding": 6, "fc": fc}
    needed |= {"logistic_regression": nn.Linear(1, 2), "weights_energy": nn.Linear(CLASSES, 1)}
    needed = {key: value for key, value in needed.items() if key in parameters(name)}
    for key, whole in numbers_of(name).items():
        allowed = cls.ranges[key]
        default = parameters(name)[key].default
        free = default is not inspect.Parameter.empty  # else the network gives it
        for usual in (default if free else None, cls.recipe.get(key)):
            assert usual is None or usual in allowed, key
        for wrong in outside(allowed, whole):
            with pytest.raises(InputError, match=f"{name}: {key} is "):
                cls(**{**needed, key: wrong})
            with pytest.raises(InputError, match=key):
                losses.check(name, {key: wrong})
    words = {key for key, kind in cls.ranges.items() if isinstance(kind, tuple)}
    for key in words & set(parameters(name)):
        with pytest.raises(InputError, match=f"{name}: {key} is 'mid'; allowed: "):
            cls(**{**needed, key: "mid"})


def test_ranges_of_modules_that_are_not_registered():
    for call, words in (
        (lambda: losses.CenterRegularizationLoss(-1.0), "margin is -1"),
        (lambda: losses.CenterRegularizationLoss(1.0, "mid"), "reduction is 'mid'"),
        (lambda: losses.ClassCenters(0, 3), "n_classes is 0"),
        (lambda: losses.ClassCenters(3, n_features=2.5), "n_features is 2.5"),
        (lambda: losses.RunningCenters(3, -1), "n_embedding is -1"),
        (lambda: losses.logit_norm_loss(torch.ones(2, 2), torch.ones(2).long(), t=0), "t is 0"),
        (lambda: losses.DeepSVDDLoss(2).fit_radius(torch.ones(3, 2), nu=0), "nu is 0"),
        (lambda: losses.DeepSVDDLoss(2, center=torch.tensor([0.0, math.nan])), "NaN"),
        (lambda: losses.DeepSVDDLoss(2, center=torch.zeros(3)), "shape"),
    ):
        with pytest.raises(InputError, match=words):
            call()
    assert losses.CACLoss(3, magnitude=torch.tensor(2.0)).magnitude == 2  # numbers of other kinds
    assert losses.CACLoss(3, magnitude=np.float32(2.0)).magnitude == 2
    with pytest.raises(TypeError, match="magnitud"):
        losses.CACLoss(3, magnitud=2.0)
    assert copy.deepcopy(losses.CACLoss(3, 2.0)).magnitude == 2


def test_recipe_stands_behind_what_is_given():
    fc = nn.Linear(6, CLASSES)
    assert (
        build("logitnorm", fc, {})[0].t == 0.04
        and build("logitnorm", fc, {"t": 0.5})[0].t == 0.5
        and losses.create("logitnorm").t == 1.0
    )
    assert build("center", fc, {"weight": 0.2})[1] == 0.2 and SMALL and further("openmix", None)
