"""Every public name of pytorch-ood is here under the same path, and takes the same arguments.

A name is public if it has no underscore, is a class, a function or a table of pytorch-ood itself,
and is defined in its module or shown by its package.
"""

import importlib
import inspect
import pickle
import pkgutil
import re

import pytest
from detector_toys import network  # noqa: F401  (a fixture)

from ood import compat
from ood.compat import api

peer = pytest.importorskip("pytorch_ood", reason="pytorch-ood is not installed")

NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
ANY = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
# Public attributes of classes that are not here, or are called otherwise, and why: a pattern of
# path.Class.attribute, and the reason.
LEFT = {
    r"detector.gram.Gram.fit_structured": "theirs takes anything and raises NotImplementedError",
    r"detector.gram.Gram.validation_fraction": "every tenth image of a class is held out",
    r"dataset.+(download|load|load_and_check_images)": "the constructor does it (download=True)",
    r"dataset.+(extra_repr|find_classes|make_dataset)": "torchvision's, of classes used there",
    r"dataset.+\w*md5\w*": "rows of our registry have it",
    r"dataset.+(url|urls|url_\w+|\w+_url|dataset_links|gdrive_id|google_drive_id)": "the same",
    r"dataset.+(filenames?|filename_\w+|\w+_filename|files|data_file|inclusion_json)": "the same",
    r"dataset.+(\w*dirs?|\w*dir_name|base_folders?\w*)": "the same",
}
# Parameters with another default, and why.
DEFAULTS = {
    "api.RequiresFittingException.__init__.msg": "the sentence is our own",
    "api.ModelNotSetException.__init__.msg": "the sentence is our own",
    **dict.fromkeys(
        (
            "detector.nnguide.NNGuide.fit_features.batch_size",
            "detector.nnguide.NNGuide.predict_features.batch_size",
            "detector.she.SHE.fit_features.batch_size",
        ),
        "without effect here: memory is bounded without it",
    ),
    "augment.img.cocopaste.COCO.loadAnns.ids": "theirs is a type, by mistake",
    "augment.img.cocopaste.COCO.loadImgs.ids": "theirs is a type, by mistake",
}


def modules():
    """Paths of all public modules, without the name of the library."""
    names = [m.name for m in pkgutil.walk_packages(peer.__path__, "pytorch_ood.")]
    return ["", *(name.split(".", 1)[1] for name in names if "._" not in name)]


def theirs(path):
    return importlib.import_module(f"pytorch_ood.{path}".rstrip("."))


def ours(path):
    return importlib.import_module(f"ood.compat.{path}".rstrip("."))


def public(path):
    """{name: thing} of a module of pytorch-ood."""
    module, found = theirs(path), {}
    shown = getattr(module, "__all__", ()) if path else module.__all__
    for name, thing in vars(module).items():
        home = getattr(thing, "__module__", None)
        here = home == module.__name__ or hasattr(module, "__path__") or name in shown
        library = home is not None and home.startswith("pytorch_ood") and callable(thing)
        table = isinstance(thing, (set, dict, list)) and name[0] != "_"
        if not name.startswith("_") and (library and here or table):
            found[name] = thing
    return found


def calls(path):
    """(label, ours, theirs) of the functions, constructors and methods that a module defines."""
    for name, their in public(path).items():
        if getattr(their, "__module__", None) != theirs(path).__name__:
            continue
        our = getattr(ours(path), name)
        if not inspect.isclass(their):
            yield f"{path}.{name}", our, their
            continue
        for method, function in inspect.getmembers(their, inspect.isroutine):
            home = getattr(function, "__module__", None) or ""
            if home.startswith("pytorch_ood") and (method == "__init__" or method[0] != "_"):
                yield f"{path}.{name}.{method}", getattr(our, method, None), function


def left(label):
    return any(re.fullmatch(pattern, label) for pattern in LEFT)


PLAIN = (bool, dict, tuple)
KINDS = {name: thing for name, thing in vars(api).items() if name in api.__all__}
KINDS = {name: thing for name, thing in KINDS.items() if issubclass(thing, api.Detector)}
MODULES = modules()
CALLS = {label: pair for path in MODULES for label, *pair in calls(path) if not left(label)}


def test_there_are_as_many_names_as_pytorch_ood_has():
    found = {thing for path in MODULES for thing in public(path).values() if callable(thing)}
    assert (len(MODULES), len(found)) == (121, 215)  # of 0.4.0, so that none is overlooked
    assert sum(len(wanted(their)) for _, their in CALLS.values()) > 1000  # arguments


@pytest.mark.parametrize("path", MODULES)
def test_every_name_is_imported_from_the_same_path(path):
    missing = public(path).keys() - vars(ours(path)).keys()
    assert not missing, f"ood.compat.{path} lacks {', '.join(sorted(missing))}"


def wanted(function):
    parameters = inspect.signature(function).parameters.values()
    return [p for p in parameters if p.kind in NAMED and p.name not in ("self", "cls")]


@pytest.mark.parametrize("label", CALLS)
def test_every_call_is_accepted(label):
    our, their = CALLS[label]
    assert our is not None, f"{label} is missing"
    signature, also = inspect.signature(inspect.unwrap(our)), getattr(our, "also", {})
    first = [None] if "self" in signature.parameters else []
    needed = [p for p in wanted(their) if p.default is p.empty]
    for given in (wanted(their), needed):  # TypeError: one is refused, or more is required
        signature.bind(*first, **{also.get(p.name, p.name): None for p in given})
        signature.bind(
            *first,
            *(None for p in given if p.kind == p.POSITIONAL_OR_KEYWORD),
            **{p.name: None for p in given if p.kind == p.KEYWORD_ONLY},
        )
    kinds = {p.kind for p in inspect.signature(their).parameters.values()} & set(ANY)
    if label.endswith("__init__"):
        assert kinds <= {p.kind for p in signature.parameters.values()}


@pytest.mark.parametrize("label", CALLS)
def test_every_default_is_the_same(label):
    our, their = CALLS[label]
    signature, also = inspect.signature(inspect.unwrap(our)).parameters, getattr(our, "also", {})
    for parameter in wanted(their):
        name = also.get(parameter.name, parameter.name)
        if parameter.default is parameter.empty or f"{label}.{name}" in DEFAULTS:
            continue
        found = signature[name].default
        wanted_default = () if parameter.default == [] else parameter.default  # () is safer
        assert found == wanted_default or repr(found) == repr(wanted_default), name


@pytest.mark.parametrize("path", MODULES)
def test_classes_have_the_same_attributes_and_bases(path):
    for name, their in public(path).items():
        if not inspect.isclass(their) or their.__module__ != theirs(path).__name__:
            continue
        our = getattr(ours(path), name)
        shown = {n for n in dir(their) if n[0] != "_"} - set(dir(our))
        shown = {n for n in shown if not left(f"{path}.{name}.{n}")}
        assert not shown, f"{path}.{name} lacks {', '.join(sorted(shown))}"
        for word in ("requires_fit", "hyperparameter_space", "inputs", "needs_id", "needs_ood"):
            if not name.startswith("_") and isinstance(getattr(their, word, None), PLAIN):
                assert getattr(our, word) == getattr(their, word), f"{path}.{name}.{word}"
        for kind, base in KINDS.items():
            assert issubclass(our, base) == issubclass(their, getattr(peer.api, kind)), name


def record(info):
    """What a record says, apart from addresses and words of licences."""
    if info is None:
        return None
    plain = {"paper": info.paper and (info.paper.title, info.paper.venue, info.paper.year)}
    for field in ("tasks", "roles", "inputs", "supervised", "task"):
        value = getattr(info, field, None)
        plain[field] = {v.value for v in value} if isinstance(value, frozenset) else value
    return plain


@pytest.mark.parametrize("path", MODULES)
def test_records_say_the_same(path):
    for name, their in public(path).items():
        if inspect.isclass(their) and hasattr(their, "info"):
            found = getattr(ours(path), name).info
            assert record(found) == record(their.info), name
            assert pickle.loads(pickle.dumps(found)) == found


def test_records_are_made_as_there():
    for library in (api, peer.api):
        paper = library.Paper("A title", "ICLR", 2020, url="https://arxiv.org/abs/1")
        made = library.LossInfo(
            [library.Task("classification")], {library.Representation.LOGITS}, True
        )
        assert made.tasks == frozenset({"classification"}) and made.paper is None
        assert library.DetectorInfo({library.Task.SEGMENTATION}, paper).paper.code is None
        assert library.DatasetInfo("classification", None).roles == frozenset()
        with pytest.raises(AttributeError):
            paper.year = 2021


def test_info_of_classes_of_your_own():
    class Warmer(compat.EnergyBased):
        pass

    class KNN(compat.FeaturesDetector):  # has only the name of one of ours
        pass

    class Anchors(compat.loss.CACLoss):
        pass

    assert Warmer.info == compat.EnergyBased.info and KNN.info is None
    assert Anchors(3).info.paper.year == 2021 and not Anchors.info.supervised


def test_paths_are_modules_for_every_kind_of_import(network):
    import ood.compat.detector.energy
    from ood.compat.loss.svdd import DeepSADLoss

    from ood.compat.detector import energy, openmax, scale

    assert importlib.util.find_spec("ood.compat.detector.energy") and energy.__all__
    assert ood.compat.detector.energy is energy is importlib.import_module(energy.__name__)
    assert scale.scale is not scale and openmax.torch.OpenMax is compat.OpenMax
    assert DeepSADLoss is compat.loss.SSDeepSVDDLoss
    detector = pickle.loads(pickle.dumps(energy.EnergyBased(network)))
    assert type(detector) is compat.EnergyBased


def test_names_of_the_package():
    assert compat.__version__ == peer.__version__
    assert all(hasattr(compat, name) for name in compat.__all__)
    error = compat.ModelNotSetException
    assert issubclass(error, ValueError) and error(msg="no").args == ("no",)
    assert compat.RequiresFittingException(msg="no").args == ("no",)
