"""A config made ready: network with weights, normalisation, image sets, outputs of forward passes.

    config = read_config("configs/mnist5k_small_cnn.json", {"limit": 100})
    bench = prepare(context, config)
    train, test = bench.outputs(bench.images("train")), bench.outputs(bench.images("test"))

Every script that works with a classifier and detectors stands on this module. The package `models`
arrives in the context, and the class of a method in `read_config`: nothing here imports them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from torch import nn

from ood import detectors, losses
from ood.config import (
    Experiment,
    InputError,
    build,
    check_setting,
    merge,
    nearest,
    read_json,
    split,
)
from ood.data import Preprocess, info, load_benchmark
from ood.data.benchmark import FOLDER, Benchmark, benchmark_names
from ood.data.images import ImageSet
from ood.data.loading import find
from ood.data.registry import is_folder_path
from ood.detectors import Detector
from ood.detectors.base import possible
from ood.evaluation import probe, scoring
from ood.evaluation.passes import Passes
from ood.evaluation.report import AVERAGE
from ood.evaluation.scoring import TestSet
from ood.outputs import Outputs
from ood.training import pretraining
from ood.training.context import Context

ID_ONLY = "id_only"  # in place of a benchmark: the ID set alone, to fit and calibrate


@dataclass(frozen=True)
class Config:
    """A config file with the flags in it.

    Attributes:
        path: of the file.
        experiment: the part that concerns the evaluation.
        method: the class of the trainable method that the config names, if it names one.
        settings: the settings of that method.
        given: names of the experiment's fields that came from flags.
        benchmark, protocol: what the file says, whatever the flags say. The numbers of the paper in
            the config belong to this benchmark.
    """

    path: str
    experiment: Experiment
    method: type | None = None
    settings: object | None = None
    given: frozenset[str] = frozenset()
    benchmark: str = Experiment.benchmark
    protocol: str = Experiment.protocol


def read_config(
    path: str | Path | dict,
    overrides: dict | None = None,
    *,
    find_method: Callable[[str], type] | None = None,
    method_overrides: dict | None = None,
) -> Config:
    """Read a config file and put the flags into it.

    Args:
        path: of the JSON file, or its content.
        overrides: {field of Experiment: value}; a value that is None was not given.
        find_method: gives the class of a method by its name, `ood.methods.get`. It is needed for a
            config that names a method.
        method_overrides: the same as `overrides`, for the settings of the method.

    Raises: InputError for an unknown key or a value that is not allowed.
    """
    described = isinstance(path, dict)
    values, where = (dict(path), "the flags") if described else (read_json(path), str(path))
    # The heatmap authors' own files name no method.
    if "ood_dataset" in values and not values.keys() & {"method", "loss"}:
        values["method"] = "heatmap"
    method = None
    if "method" in values:
        if find_method is None:
            raise InputError(f"{where}: configs with a method cannot be used here")
        method = find_method(values["method"])
    ours, theirs = split(values, method.Settings if method else pretraining.Settings, where)
    overrides = {name: value for name, value in (overrides or {}).items() if value is not None}
    for name, value in overrides.items():
        check_setting(Experiment, name, value, f"-{name}")
    if overrides.get("arch", ours.get("arch")) != ours.get("arch"):
        # these belong to the architecture of the file
        ours = {k: v for k, v in ours.items() if k not in ("depth", "width", "model_args")}
    experiment = build(Experiment, merge(ours, overrides), where)
    settings = None
    chosen = merge(method_overrides or {})
    known = {f.name for f in dataclasses.fields(method.Settings)} if method else set()
    for name in chosen.keys() - known:
        what = f"method {method.name}" if method else "a config without a method"
        raise InputError(f"-{name} means nothing to {what} ({where}); leave it out")
    if method:
        settings = build(method.Settings, merge(theirs, chosen), where)
    own = {name: ours[name] for name in ("benchmark", "protocol") if name in ours}
    return Config(where, experiment, method, settings, frozenset(overrides), **own)


def flagged(flags) -> dict:
    """The values of parsed flags that are fields of Experiment, by the name of the field."""
    names = {f.name for f in dataclasses.fields(Experiment)}
    given = {name: value for name, value in vars(flags).items() if name in names}
    if getattr(flags, "pretrained", False):
        given["model_args"] = {"pretrained": True}
    return {**given, "id_dataset": getattr(flags, "dataset", None)}


@dataclass
class Workbench:
    """What `prepare` gives.

    Attributes:
        context: where things are, on what to compute, how to speak.
        experiment: the settings.
        suite: the benchmark.
        num_classes: classes of the network.
        passes: the network (None for a method without classifier), its normalisation and settings.
        weights: file or run folder of the weights. None: the architecture brings its own weights
            along, or the method's newest run was taken.
        objective: what the weight file records of the loss; {} when it records nothing.
        trained: the trained method, if the config names one.
        named: the classes that the weight file names, in the order of the logits; None: it names
            none.
    """

    context: Context
    experiment: Experiment
    suite: Benchmark
    num_classes: int
    passes: Passes
    weights: Path | None = None
    objective: dict = field(default_factory=dict)
    trained: object | None = None
    named: tuple[str, ...] | None = None
    _images: dict = field(default_factory=dict)
    _outputs: dict = field(default_factory=dict)

    @property
    def methods(self) -> dict:
        """{name: trained method} with its variants, or {}."""
        return {self.trained.name: self.trained, **self.trained.variants()} if self.trained else {}

    @property
    def network(self) -> nn.Module | None:
        """The classifier."""
        return self.passes.network

    @property
    def preprocess(self) -> Preprocess:
        """The normalisation of the classifier's input."""
        return self.passes.preprocess

    @property
    def reading(self) -> dict:
        """Keyword arguments of `load`, `load_id` and `load_ood`."""
        return {
            "data_dir": self.context.data_dir,
            "limit": self.experiment.limit,
            "seed": self.experiment.seed,
            "download": self.context.download,
        }

    @property
    def recipe(self) -> dict:
        """How any picture becomes an input of the network: size, resize, channels of `load`."""
        channels, *sides = self.images("test").shape
        return {
            "size": self.suite.size,
            "resize": self.suite.resize or (None if self.suite.size else tuple(sides)),
            "channels": channels,
            "interpolation": self.suite.interpolation,
        }

    @property
    def arch(self) -> dict:
        """Keyword arguments of `models.build` for this network.

        torchvision's own weights are named only where they are used.
        """
        options = {**self.network.arch, **self.experiment.model_args}
        if self.weights is not None:
            for name in ("weights", "pretrained"):
                options.pop(name, None)
        elif self.experiment.arch.startswith("hf:"):
            options.setdefault("pretrained", True)
        return options

    @property
    def digest(self) -> str:
        """Digest of the network."""
        return self.passes.digest

    def images(self, split: str) -> ImageSet:
        """The ID images of a split, 'train' or 'test'.

        Raises: InputError where their classes are not those of the network.
        """
        if split not in self._images:
            images = self.suite.load_id(split, **self.reading)
            if images.num_classes not in (None, self.num_classes):
                raise InputError(
                    f"{images.name} has {images.num_classes} classes, the network has "
                    f"{self.num_classes} (num_classes); they must agree"
                )
            self._images[split] = images
        return self._images[split]

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """What the logits mean, in their order: as the weight file says, else as the ID set says.

        None where nobody names the classes. Where both do and they differ, the log says so.
        """
        of_set = self.images("test").class_names
        if self.named is None or self.experiment.head != "own":
            return of_set
        if of_set is not None and set(of_set) != set(self.named):
            self.context.log(
                f"classes: the weights know {_some(self.named)}; "
                f"{self.experiment.id_dataset} has {_some(of_set)}"
            )
        return self.named

    def training_images(self, made: dict[str, Detector]) -> ImageSet | None:
        """The ID training images; None when none of the detectors has to be fitted."""
        return self.images("train") if any(d.requires_fit for d in made.values()) else None

    def ood(self) -> list[TestSet]:
        """The OOD sets of the benchmark; only some of them where the experiment names them."""
        if not self.suite.entries:
            raise InputError(
                f"no benchmark is named for '{self.experiment.id_dataset}', so there are no OOD "
                f"sets; give one with -benchmark: {', '.join(benchmark_names())}, or a JSON file"
            )
        count = len(self.images("test"))
        sets = []
        for entry in self.suite.select(self.experiment.datasets).entries:
            images = self.suite.load_ood(entry, count, **self.reading)
            sets.append(TestSet(entry.dataset, images, entry.group or "", entry.label))
        return sets

    def fit_head(self) -> None:
        """Give the network a linear head that is fitted on the features of the training images.

        Raises: InputError where they have no labels.
        """
        train = self.outputs(self.images("train"))
        weight, bias = probe.fit_head(train, self.num_classes)
        headed = self.context.networks.with_head(self.network, weight, bias)
        self.passes = self.passes.under(headed)
        right = scoring.accuracy(self.outputs(self.images("train")))
        self.context.log(
            f"linear head: {self.num_classes} classes, fitted on {len(train):,} images "
            f"(accuracy on them {100 * right:.2f} %)"
        )

    def outputs(self, images: ImageSet, image_detectors=(), taps: bool = False) -> Outputs:
        """Outputs of one pass over the images; what was run before is not run again."""
        key = (images.digest, taps, self.digest)
        if key in self._outputs and not image_detectors:
            return self._outputs[key]
        found = self.passes.outputs(images, image_detectors, taps)
        return found if image_detectors else self._outputs.setdefault(key, found)

    def own_score(self) -> dict[str, Detector]:
        """{label: detector} of the score of the loss that the network was trained with, or {}."""
        own = None if self.trained else losses.own_score(self.network, self.objective)
        return {own.name: own} if own else {}

    def possible(self, made: dict[str, Detector]) -> tuple[dict[str, Detector], dict[str, str]]:
        """Split detectors into those that work with this network and the reasons of the others.

        Both are dicts keyed by label. The log names the reasons.
        """
        made, left_out = possible(made, self.network)
        for reason in left_out.values():
            self.context.log(f"left out of all: {reason}")
        return made, left_out


def prepare(context: Context, config: Config) -> Workbench:
    """Make a config ready: benchmark, network with weights or trained method, normalisation.

    Raises: InputError for weights, data or benchmarks that are not there or do not fit.
    """
    if config.method is None:
        return prepare_classifier(context, config)
    experiment = config.experiment
    suite, num_classes = _benchmark(config, context.data_dir)
    weights = asked_for(experiment, context.checkpoints_dir)
    own_context = dataclasses.replace(context, limit=experiment.limit)
    try:
        trained = config.method.load(config.settings, own_context, weights)
    except ValueError as error:
        told = _holds_classifier(context.networks, config, suite, num_classes, weights)
        raise (told or error) from None
    if trained.classifier is None and experiment.detectors:
        raise InputError(
            f"method '{trained.name}' has no classifier for detectors "
            f"({', '.join(experiment.detectors)}); leave -detectors out"
        )
    passes = _passes(context, experiment, trained.classifier, trained.preprocess)
    return Workbench(context, experiment, suite, num_classes, passes, weights, trained=trained)


def _holds_classifier(
    networks: ModuleType, config: Config, suite: Benchmark, num_classes: int, weights: Path | None
) -> InputError | None:
    """The error that says so where -checkpoint names a classifier, not the weights of a method."""
    experiment, shape = config.experiment, _shape(config.experiment, suite)
    if weights is None or not weights.is_file() or not experiment.arch:
        return None
    try:
        load_network(networks, experiment, num_classes, shape, weights)
    except ValueError:
        return None
    for_it = FOLDER.parent / f"{suite.name}.json"
    example = f", such as configs/{for_it.name}" if for_it.is_file() else ""
    takes = {f.name for f in dataclasses.fields(config.method.Settings)}
    how = "give it with -classifier, or use " if "classifier" in takes else "use "
    return InputError(
        f"'{weights}' holds a classifier ({experiment.arch}), not the weights of method "
        f"{config.method.name}; {how}a config without a method{example}"
    )


def prepare_classifier(context: Context, config: Config) -> Workbench:
    """The same as `prepare` for the classifier of a config, whether or not it names a method."""
    experiment, networks = config.experiment, context.networks
    suite, num_classes = _benchmark(config, context.data_dir)
    facts = info(experiment.id_dataset)
    weights = weight_file(networks, experiment, context.checkpoints_dir)
    context.log(f"weights: {weights or 'of the architecture'}")
    shape = _shape(experiment, suite)
    network, stored = load_network(networks, experiment, num_classes, shape, weights)
    own = {**(networks.recipe(network) or {}), **(stored.get("preprocess") or {})}
    suite = suite.prepared_as(_preparation(experiment, suite, network, own))
    preprocess = Preprocess(
        experiment.mean or own.get("mean") or suite.mean or facts.mean,
        experiment.std or own.get("std") or suite.std or facts.std,
    )
    passes = _passes(context, experiment, network, preprocess)
    objective = stored.get("objective") or {}
    bench = Workbench(context, experiment, suite, num_classes, passes, weights, objective)
    names = stored.get("class_names")
    if isinstance(names, list) and len(names) == num_classes:
        bench.named = tuple(map(str, names))
    if experiment.head == "linear":
        bench.fit_head()
    return bench


def _preparation(experiment: Experiment, suite: Benchmark, network: nn.Module, own: dict) -> dict:
    """How the images are prepared for a network; {} leaves it to the benchmark.

    The side comes from -size, else from the weight file, else from a foreign network's library.
    """
    size = experiment.size or own.get("size")
    wanted = {name: own.get(name) for name in ("interpolation", "channels")}
    if suite.channels is None and is_folder_path(experiment.id_dataset):
        wanted["channels"] = own.get("channels") or network.arch.get("in_channels")
    if size and size != (suite.size or info(experiment.id_dataset).size):
        wanted["size"] = size
        if own.get("size") == size:  # else the resize belongs to another size
            wanted["resize"] = own.get("resize")
    return wanted


def _some(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"


def weight_file(
    networks: ModuleType, experiment: Experiment, checkpoints_dir: str | Path
) -> Path | None:
    """The weights that the experiment asks for, else those of the newest run of its configuration.

    None where the library's published weights are asked for, or where a file holds the network.
    """
    weights = asked_for(experiment, checkpoints_dir)
    args = experiment.model_args
    brings = args.get("weights") or args.get("pretrained") or networks.runs_code(experiment.arch)
    if experiment.arch.startswith("hf:") and args.get("pretrained") is None:
        brings = True
    if weights is None and not brings:
        weights = pretraining.newest_classifier(networks, experiment, checkpoints_dir).folder
    return weights / "best.pt" if weights and weights.is_dir() else weights


def asked_for(experiment: Experiment, checkpoints_dir: str | Path) -> Path | None:
    """The weight file or run folder that -checkpoint or -checkpoint_name names; None without them.

    Raises: InputError where both are given, or where the run folder does not exist.
    """
    file, name = experiment.checkpoint, experiment.checkpoint_name
    if file and name:
        raise InputError(
            "give -checkpoint (a file) or -checkpoint_name (a run folder), not both: "
            f"'{file}' and '{name}'"
        )
    if file:
        return Path(file)
    if not name:
        return None
    folder = Path(checkpoints_dir) / name
    if not folder.is_dir():
        there = (path for path in Path(checkpoints_dir).glob("[!.]*") if path.is_dir())
        raise InputError(
            f"no run folder '{folder}'{nearest(name, sorted(path.name for path in there))}; "
            f"-checkpoint_name takes the name of a folder in '{checkpoints_dir}'"
        )
    return folder


def load_network(
    networks: ModuleType,
    experiment: Experiment,
    num_classes: int,
    shape: dict,
    weights: Path | None,
) -> tuple[nn.Module, dict]:
    """Build the classifier and load its weights.

    Args:
        shape: {"in_channels", "image_size"}.
        weights: the file; None: the architecture brings its own weights along.

    Returns: the network, and what its file records beside the weights ("preprocess": normalisation,
        "objective": loss); {} without a file.
    """
    options = {name: getattr(experiment, name) for name in ("depth", "width")}
    options = {name: value for name, value in options.items() if value is not None}
    options |= experiment.model_args
    if weights is not None:
        for name in ("weights", "pretrained"):  # the library would download them
            options.pop(name, None)
    if networks.is_foreign(experiment.arch):
        # its library says what it takes, unless a flag does
        shape = {"in_channels": None, "image_size": experiment.size}
        if experiment.head != "own":
            options["head"], num_classes = "none", None
        elif weights is None:
            return _published(networks, experiment, num_classes, shape, options), {}
    network = networks.build(experiment.arch, num_classes, **shape, **options)
    meta = {} if weights is None else networks.checkpoints.load_into(network, weights)
    if experiment.head != "own":
        network = networks.without_head(network)
    return network.eval(), meta


def _published(
    networks: ModuleType, experiment: Experiment, num_classes: int, shape: dict, options: dict
) -> nn.Module:
    """A foreign network with its own weights and its own head.

    Raises: InputError where the head has other classes than the data set.
    """
    network = networks.build(experiment.arch, None, **shape, **options)
    own = network.fc.weight.shape[0]
    if own != num_classes:
        raise InputError(
            f"{experiment.arch} has {own} classes, {experiment.id_dataset} has {num_classes}; use "
            "its features with -head linear or -head none, or fine-tune it with "
            "classifier_pretraining.py"
        )
    return network.eval()


def make_detectors(experiment: Experiment) -> dict[str, Detector]:
    """{label: detector} in the order asked for.

    Raises: InputError for a misspelt name or hyper-parameter, or where nothing is asked for.
    """
    known = detectors.names()
    for name in experiment.detector_args:
        if name not in known:
            detectors.create(name)
    made = {}
    for text in known if experiment.detectors == ("all",) else experiment.detectors:
        if text in made:
            raise InputError(f"detector '{text}' is named twice")
        made[text] = make_detector(experiment, text)
    if not made and not experiment.method:
        raise InputError(f"no detector is named; detectors: {', '.join(known)}")
    return made


def make_detector(experiment: Experiment, text: str, **more) -> Detector:
    """The detector that `text` names, such as 'dice:percentile=70'.

    Its hyper-parameters are the config's, then those in `text`, then `more`; later ones win.
    """
    name, values = detectors.parse(text)
    return detectors.create(name, **{**experiment.detector_args.get(name, {}), **values, **more})


def published(config: Config, suite: Benchmark) -> tuple[dict, tuple[str, ...]]:
    """The paper's numbers that may stand beside ours.

    The numbers in a config belong to the benchmark that it names. With another benchmark (or
    protocol, or ID set), only those numbers stay whose sets are the same there.

    Returns: {detector: {set or average: {metric: fraction}}} as for `report.Report`, and the OOD
        sets that the paper's averages are over.
    """
    paper = config.experiment.paper
    if not paper:
        return {}, ()
    try:
        own = load_benchmark(config.benchmark, config.protocol)
    except InputError:  # another one was given instead
        return {}, ()
    theirs, ours = _prepared(own.entries), _prepared(suite.entries)
    same = {name for name in theirs if ours.get(name) == theirs[name]}
    if _of_id(own) != _of_id(suite):
        same = set()
    names = same | {entry.label for entry in own.entries if entry.dataset in same}
    averages = same == set(theirs)

    def stays(name: str) -> bool:
        return averages if name.startswith(AVERAGE) else name in names

    kept = {
        detector: {name: values for name, values in numbers.items() if stays(name)}
        for detector, numbers in paper.items()
    }
    return {detector: numbers for detector, numbers in kept.items() if numbers}, tuple(theirs)


def _prepared(entries) -> dict:
    """{data set: how its images are chosen and prepared}."""
    return {e.dataset: dataclasses.replace(e, label=None, group=None) for e in entries}


def _of_id(suite: Benchmark) -> Benchmark:
    """What a benchmark says of its ID images."""
    return dataclasses.replace(suite, name="", entries=(), mean=None, std=None, source="", notes="")


def _benchmark(config: Config, data_dir: str | Path) -> tuple[Benchmark, int]:
    """The benchmark for the experiment's ID set, and the number of classes."""
    experiment = config.experiment
    if experiment.benchmark == ID_ONLY:
        suite = Benchmark(ID_ONLY, experiment.id_dataset)
    else:
        suite = load_benchmark(experiment.benchmark, experiment.protocol)
    if "id_dataset" in config.given:
        suite = dataclasses.replace(suite, id_dataset=experiment.id_dataset)
    if suite.id_dataset != experiment.id_dataset:
        raise InputError(
            f"benchmark '{suite.name}' is for {suite.id_dataset}, "
            f"the config's id_dataset is {experiment.id_dataset}"
        )
    suite.select(experiment.datasets)  # a misspelt name fails before anything is loaded
    chosen = suite.id_classes
    known = len(chosen) if chosen else info(experiment.id_dataset).num_classes
    if known is None and experiment.num_classes is None:
        known = _classes_of(suite.id_files or suite.id_dataset, data_dir)
    num_classes = experiment.num_classes or known
    if known not in (None, num_classes):
        raise InputError(
            f"{experiment.id_dataset} has {known} classes, the network has {num_classes} "
            "(num_classes); they must agree"
        )
    if num_classes is None:
        raise InputError(
            f"{config.path}: '{experiment.id_dataset}' names no classes; give num_classes "
            "(-num_classes)"
        )
    return suite, num_classes


def _classes_of(dataset: str, data_dir: str | Path) -> int | None:
    """Number of classes of a data set of one's own; None where it has no labels."""
    labels = find(dataset, "train", data_dir).labels
    return None if labels is None or max(labels, default=-1) < 0 else int(max(labels)) + 1


def _shape(experiment: Experiment, suite: Benchmark) -> dict:
    """{"in_channels", "image_size"} of the network's input."""
    facts = info(experiment.id_dataset)
    return {
        "in_channels": suite.channels or facts.channels,
        "image_size": experiment.size or suite.size or facts.size,
    }


def _passes(context: Context, experiment: Experiment, network, preprocess) -> Passes:
    return Passes(
        network,
        preprocess,
        device=context.device,
        batch_size=experiment.batch_size,
        precision=experiment.precision,
        cache=context.cache,
        progress=context.progress,
    )
