"""Put published weights (-weights) into a config: fetch them, and set what belongs to them.

The rows are those of `models.weights`; a script hands that package in.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from ood.cli import RunError
from ood.config import InputError
from ood.data.fetch import published
from ood.data.fetch.archives import ObtainError
from ood.data.fetch.download import DownloadError
from ood.data.fetch.unpack import UnpackError
from ood.evaluation import described
from ood.evaluation.workbench import Config

LIST = "list"  # -weights list: print the table instead


def folder(checkpoints_dir: str | Path) -> Path:
    """Return the folder of published files."""
    return Path(checkpoints_dir) / "published"


def config_path(networks: ModuleType, flags) -> str | dict:
    """Return -config; without it, the config that tests the published weights.

    Where -weights is not given, it is what `described.source` finds.

    Raises: InputError if no config tests them.
    """
    if flags.config:
        return flags.config
    if not flags.weights:
        return described.source(networks, flags)
    row = networks.weights.find(flags.weights)
    if not row.tested_by:
        raise InputError(
            f"no config here tests '{row.name}' ({row.dataset}); give one with -config"
        )
    return f"./configs/{row.tested_by}.json"


def use(
    networks: ModuleType, name: str, config: Config, root: Path, log: Callable[[str], None]
) -> Config:
    """Fetch published weights, and return the config with them in it.

    A classifier brings its architecture, normalisation and mean feature along. In the config of a
    method that takes a classifier, it becomes that. The weights of a method bring what it needs.

    Args:
        networks: the package `models`.
        name: of the weights.
        root: folder of published files.
        log: gets one line for each step.

    Raises:
        InputError: the weights do not belong to the config, or only a person can get them.
        RunError: the download failed, or the file has another checksum.
    """
    row, experiment, method = networks.weights.find(name), config.experiment, config.method
    if experiment.checkpoint or experiment.checkpoint_name:
        raise InputError("give -weights, or -checkpoint or -checkpoint_name, not both")
    _check_dataset(row, config)

    def file_of(row, file=None) -> str:
        try:
            return str(published.obtain(row, root, file=file, log=log))
        except (DownloadError, ObtainError, UnpackError) as error:
            raise RunError(str(error)) from None

    log(f"published weights: {row.name} | {row.source} | licence: {row.licence}")
    if method is None and row.kind == "classifier":
        return dataclasses.replace(config, experiment=_classifier(row, experiment, file_of))
    if method is None or row.kind not in ("classifier", method.name):
        raise InputError(_wrong_kind(row, config))
    if row.kind == "classifier":
        if not hasattr(config.settings, "classifier"):
            raise InputError(_wrong_kind(row, config))
        settings = dataclasses.replace(config.settings, classifier=file_of(row))
        return dataclasses.replace(config, settings=settings)
    weights = Path(file_of(row))
    if weights.is_dir():  # a fold of an ensemble: the method takes the folder of all folds
        weights = weights.parent
    needed = {
        setting: file_of(networks.weights.find(other))
        for setting, other in row.needs.items()
        if getattr(config.settings, setting) is None
    }
    return dataclasses.replace(
        config,
        experiment=dataclasses.replace(experiment, checkpoint=str(weights)),
        settings=dataclasses.replace(config.settings, **needed),
    )


def _classifier(row, experiment, file_of):
    """Return the experiment with a classifier of its own architecture and normalisation."""
    arguments = {name: dict(values) for name, values in experiment.detector_args.items()}
    if row.feature_mean is not None:
        mean = file_of(row, row.feature_mean)
        for name in ("dice", "dice_react"):
            arguments[name] = {"feature_mean": mean, **arguments.get(name, {})}
    return dataclasses.replace(
        experiment,
        checkpoint=file_of(row),
        arch=row.arch,
        depth=None,
        width=None,
        model_args=dict(row.options),
        num_classes=row.num_classes,
        mean=row.mean or experiment.mean,
        std=row.std or experiment.std,
        detector_args=arguments,
    )


def _check_dataset(row, config: Config) -> None:
    """Raise an InputError if the weights were trained on another set, unless -dataset names it."""
    tested = config.experiment.id_dataset
    if tested == row.dataset or "id_dataset" in config.given:
        return
    other = f"leave -config out to use configs/{row.tested_by}.json, or " if row.tested_by else ""
    raise InputError(
        f"'{row.name}' was trained on {row.dataset}, the ID set of {config.path} is {tested}; "
        f"{other}name the ID set with -dataset"
    )


def _wrong_kind(row, config: Config) -> str:
    what = f"tests the method {config.method.name}" if config.method else "tests a classifier"
    kind = "a classifier" if row.kind == "classifier" else f"of the kind {row.kind}"
    use = f"; use -config ./configs/{row.tested_by}.json" if row.tested_by else ""
    return f"'{row.name}' is {kind}, and {config.path} {what}{use}"
