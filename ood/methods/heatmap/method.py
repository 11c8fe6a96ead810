"""Heatmaps that turn an image into the nearest ID image: none is needed for ID, a strong one for OOD.

    h(x) = decoder(features(x), one-hot of the predicted class)  in (-1, 1), as large as the image
    ID:   h + x = x           OOD:  h + x = p, the nearest ID training image of the same predicted class
    loss  = mean over images of  sum (1 + 5 |t|) (h + x - t)^2,   t = x or p, in [-1, 1]
    score = mean over pixels of  max over channels of |h|          larger = OOD

Source: Hornauer & Belagiannis, "Heatmap-based Out-of-Distribution Detection", WACV 2023, arXiv 2211.08115. Their classifier is frozen;
here it therefore runs once, and the decoder trains on cached features, classes and targets. Their released code pairs OOD images with
other images' targets and scales one row in 200; both are switches (`pairing`, `scaling`), off by default.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ood import cli, distributed
from ood.config import InputError, build, to_dict
from ood.data import ImageSet, Preprocess, auxiliary, info, load
from ood.data.registry.table import is_folder_path
from ood.methods.base import Context, Method
from ood.methods.heatmap.formulas import score_of, weighted_errors
from ood.methods.heatmap.settings import FREE, HALF, IDENTITY, Settings
from ood.methods.heatmap.targets import (
    DecoderBatches,
    Pixels,
    Scale,
    StageMaps,
    fit_scale,
    nearest_id,
    pair_as_released,
)
from ood.metrics_released import fpr95_released
from ood.outputs import Outputs, extract, network_digest, weights_digest
from ood.training import loop, runs

RELEASED_FILE = "model.pt"  # in a run folder of the authors


class Heatmap(Method):
    """The trained decoder with its classifier."""

    name = "heatmap"
    Settings = Settings

    def __init__(
        self,
        classifier,
        decoder,
        preprocess: Preprocess,
        settings: Settings,
        context: Context,
        scale: Scale = Scale(),
    ):
        self.device = context.device
        self.classifier, self.decoder = (
            classifier.to(self.device).eval(),
            decoder.to(self.device, memory_format=torch.channels_last).eval(),
        )
        self.preprocess, self.settings, self.context, self.scale = (
            preprocess,
            settings,
            context,
            scale,
        )
        channels = len(preprocess.mean)
        self.to_map = Preprocess((HALF,) * channels, (HALF,) * channels)  # pixels -> [-1, 1]
        self.digest = network_digest(self.classifier)
        self.classifier_weights = weights_digest(self.classifier)
        self._outputs: dict[str, Outputs] = {}
        self._scores: dict[str, Tensor] = {}

    # -- scores

    def score(self, images: ImageSet) -> Tensor:
        """(N,) scores; with fw_layers 1 a function of the cached outputs, so that no further pass of the classifier is needed."""
        if images.digest not in self._scores:
            outputs, rows = (
                self.outputs(images),
                distributed.share_of_rows(len(images), self.settings.batch_size),
            )
            parts = [
                score_of(maps).cpu()
                for maps in self.maps(images.subset(rows), outputs[rows], rows.start)
            ]
            self._scores[images.digest] = distributed.gather_rows(
                torch.cat(parts) if parts else None
            )
        return self._scores[images.digest]

    def maps(
        self, images: ImageSet, outputs: Outputs | None = None, first_row: int = 0
    ) -> Iterator[Tensor]:
        """Maps (B, C, H, W) batch by batch. outputs: of these images, if they are at hand; first_row: of the set that they are a part of."""
        outputs = outputs or self.outputs(images)
        size = self.settings.batch_size
        batches = images.batches(size) if self.settings.fw_layers > 1 else None
        for start in range(0, len(images), size):
            part = outputs[start : start + size]
            yield self.maps_of(
                part.features,
                part.logits.argmax(1),
                next(batches) if batches else None,
                first_row + start,
            )

    def maps_of(
        self, features: Tensor, predicted: Tensor, pixels: Tensor | None = None, first_row: int = 0
    ) -> Tensor:
        """Maps (B, C, H, W) of one batch. pixels (B, C, H, W): needed where fw_layers > 1."""
        levels = [features.to(self.device)]
        with torch.no_grad(), loop.autocast(self.device, self.settings.precision):
            if self.settings.fw_layers > 1:
                stages = self.classifier.stages(self._input(pixels))
                levels += [stage.float() for stage in stages[::-1][: self.settings.fw_layers - 1]]
            levels = self.scale(levels, first_row)
            return self.decoder(levels[0], predicted.to(self.device), levels[1:]).float()

    def outputs(self, images: ImageSet) -> Outputs:
        """Features and logits of the classifier, from the cache or (without one) kept here: it sees an image once."""
        context = self.context
        if images.digest not in self._outputs:
            bar = context.progress and (
                lambda batches, **k: context.progress(batches, images.name, unit="images", **k)
            )
            self._outputs[images.digest] = extract(
                self.classifier,
                images,
                self.preprocess,
                device=self.device,
                batch_size=self.settings.batch_size,
                precision=self.settings.precision,
                cache=context.cache,
                digest=self.digest,
                progress=bar,
            )
        return self._outputs[images.digest]

    def accuracy(self, images: ImageSet) -> float | None:
        """Of the classifier, which the method leaves as it is."""
        labels = torch.as_tensor(images.labels)
        if not (labels >= 0).any():
            return None
        return (self.outputs(images).logits.argmax(1) == labels)[labels >= 0].double().mean().item()

    def extra_metrics(self, id_images: ImageSet, ood_images: ImageSet) -> dict[str, float]:
        """fpr95_released: the authors' scan of 10,000 thresholds, for comparison only: 0 may mean that it found none."""
        return {"fpr95_released": fpr95_released(self.score(id_images), self.score(ood_images))}

    def figures(self, out_dir: str | Path, sets: list) -> list[tuple[Path, str]]:
        """figures/heatmaps_<set>.png for every set (ImageSet, or anything with such `images`); [(path, caption)]."""
        from ood.methods.heatmap import figures

        sets = [images if isinstance(images, ImageSet) else images.images for images in sets]
        known = id_training_images(self.settings, self.context)
        return figures.draw(self, known, sets, Path(out_dir) / "figures")

    def _input(self, pixels: Tensor) -> Tensor:
        return self.preprocess(pixels.to(self.device)).contiguous(memory_format=torch.channels_last)

    # -- training

    @classmethod
    def train(cls, settings: Settings, context: Context) -> runs.Run:
        """Train the decoder of a classifier that is there already (or continue, when context.resume)."""
        run = _to_resume(settings, context)
        if run:
            stored = _settings_of(run.config)
            runs.agree(
                _config(stored), _config(settings), FREE + ("classifier", "precision"), run.folder
            )
            settings = dataclasses.replace(
                stored,
                n_epochs=settings.n_epochs,
                precision=settings.precision,
                classifier=run.config["classifier"],
            )
        resumed = bool(run)
        cli.set_seed(settings.seed, context.deterministic)
        classifier, preprocess, source = load_classifier(
            settings, context, run.folder if run else None
        )
        decoder = context.networks.decoder_for(classifier, settings.fw_layers, **settings.decoder)
        method = cls(classifier, decoder, preprocess, settings, context)
        known = id_training_images(settings, context)
        _check_images(known, classifier)
        outliers = auxiliary.draw(
            settings.ood_dataset,
            settings.num_ood,
            settings.seed,
            context.data_dir,
            size=known.shape[1],
            channels=known.shape[0],
            resize=settings.resize,
            download=context.download,
            limit=context.limit,
        )
        batches = method._batches(known, outliers)

        if not run:
            run = runs.create(
                _stem(settings),
                {
                    "kind": "heatmap",
                    **_config(settings),
                    "limit": context.limit,
                    "classifier": str(source),
                    "classifier_weights": method.classifier_weights,
                    "finished": False,
                },
                root=context.checkpoints_dir,
                out_dir=context.out_dir,
            )
        if (
            run.config.get("classifier_weights", method.classifier_weights)
            != method.classifier_weights
        ):
            raise InputError(
                f"the run in '{run.folder}' began with another classifier than '{source}'; keep its classifier.pt, or start a new run"
            )
        if not (run.folder / "classifier.pt").is_file():
            run.save(
                "classifier.pt",
                {
                    "format": "ood-1",
                    "arch": classifier.arch,
                    "state_dict": classifier.state_dict(),
                    "epoch": 0,
                    "metrics": {},
                    "preprocess": {
                        "mean": list(preprocess.mean),
                        "std": list(preprocess.std),
                        "size": known.shape[1],
                    },
                },
            )
        run.update(n_epochs=settings.n_epochs, finished=False)
        context.begin(
            run,
            settings,
            {"classifier": method.digest, "train": known.digest, "ood": outliers.digest},
            resumed,
            train_images=len(known),
            ood_images=len(outliers),
        )
        context.log(
            f"classifier {source} | {len(known)} ID, {len(outliers)} auxiliary images | pairing {settings.pairing} | run folder {run.folder}"
        )
        facts = {
            "min": method.scale.low,
            "max": method.scale.high,
            "fw_layers": settings.fw_layers,
            "classifier_weights": method.classifier_weights,
        }

        def pack(epoch, metrics):
            return {
                "format": "ood-1",
                "arch": decoder.arch,
                "state_dict": decoder.state_dict(),
                "epoch": epoch,
                "metrics": metrics,
                **facts,
            }

        optimizer = loop.make_optimizer(
            "adam", decoder.parameters(), settings.lr, betas=(settings.b1, settings.b2)
        )
        schedule = loop.Schedule(optimizer, "constant", settings.n_epochs)
        with runs.board(run, context.tensorboard) as tell:
            loop.fit(
                method.loss,
                decoder,
                batches,
                epochs=settings.n_epochs,
                optimizer=optimizer,
                schedule=schedule,
                run=run,
                pack=pack,
                resume=context.resume,
                precision=settings.precision,
                say=context.log,
                tell=tell,
            )
        run.update(finished=True)
        return run

    def loss(self, batch) -> tuple[Tensor, dict]:
        """Mean over the batch of the weighted squared error; parts: what ID and what OOD images add to it."""
        features, predicted, images, targets, maps = batch
        heatmaps = self.decoder(features, predicted, maps).float()
        errors = weighted_errors(heatmaps, self.to_map(images), self.to_map(targets))  # (B,)
        outlier = (images != targets).flatten(1).any(1)
        return errors.mean(), {"ood_part": (errors * outlier).mean().detach()}

    def _batches(self, known: ImageSet, outliers: ImageSet) -> DecoderBatches:
        """Everything that the decoder trains on, computed once."""
        settings, count = self.settings, len(known)
        seen, novel = self.outputs(known), self.outputs(outliers)
        predicted, predicted_novel = seen.logits.argmax(1), novel.logits.argmax(1)
        partner = nearest_id(
            seen.features.to(self.device),
            predicted.to(self.device),
            novel.features.to(self.device),
            predicted_novel.to(self.device),
        )
        if settings.pairing == "released":
            partner = pair_as_released(partner, predicted_novel)
        pixels, maps = Pixels([known, outliers], self.device), None
        if settings.fw_layers > 1:
            maps = StageMaps(
                self.classifier,
                pixels,
                self._input,
                settings.fw_layers - 1,
                settings.batch_size,
                lambda: loop.autocast(self.device, settings.precision),
            )
            maps.keep()
        passes = maps and (
            lambda: (maps(rows) for rows in torch.arange(count).split(settings.batch_size))
        )
        self.scale = fit_scale(settings.scaling, seen.features, passes, settings.batch_size)
        return DecoderBatches(
            torch.cat([seen.features, novel.features]),
            torch.cat([predicted, predicted_novel]),
            torch.cat([torch.arange(count), partner]),
            pixels,
            batch_size=settings.batch_size,
            seed=settings.seed,
            device=self.device,
            scale=self.scale,
            maps=maps,
        )

    # -- loading

    @classmethod
    def load(
        cls, settings: Settings, context: Context, checkpoint: str | Path | None = None
    ) -> Heatmap:
        """The trained decoder: from a weight file (ours or the authors' model.pt) or run folder, else the newest finished run of exactly
        these settings (any seed)."""
        folder = Path(checkpoint) if checkpoint else find(settings, context)
        file = folder
        if folder.is_dir():
            file = next(
                (folder / name for name in ("best.pt", RELEASED_FILE) if (folder / name).is_file()),
                folder / "best.pt",
            )
        folder = file.parent
        settings = _adopt(settings, folder)
        weights = context.networks.checkpoints.read(file)
        classifier, preprocess, source = load_classifier(settings, context, folder)
        decoder = context.networks.decoder_for(classifier, settings.fw_layers, **settings.decoder)
        context.networks.checkpoints.load_into(decoder, weights)
        scale = _stored_scale(weights.meta, settings, file)
        method = cls(classifier, decoder, preprocess, settings, context, scale)
        if (
            weights.meta.get("classifier_weights", method.classifier_weights)
            != method.classifier_weights
        ):
            raise InputError(
                f"'{file}' was trained on another classifier than '{source}'; keep its classifier.pt beside it, or give that classifier"
            )
        done = weights.meta.get("epoch")
        context.log(
            f"decoder {file} | classifier {source} | pairing {settings.pairing} | epoch {done}"
        )
        if runs.Run(folder).config.get("finished") is False:
            context.log(
                f"warning: the run in '{folder}' has not finished ({done} of {settings.n_epochs} epochs)"
            )
        return method


# ---- the parts that train and load share -------------------------------------------------------------------------------------


def load_classifier(settings: Settings, context: Context, folder: Path | None = None):
    """(network, preprocess, path): the copy in a run folder, else settings.classifier, else the newest run of this architecture.

    Raises: InputError when there is none, with the command that trains one, or when it does not fit the settings.
    """
    networks, path = context.networks, folder / "classifier.pt" if folder else None
    if path is None or not path.is_file():
        path = (
            Path(settings.classifier)
            if settings.classifier
            else _newest_classifier(settings, context)
        )
    path = path / "best.pt" if path.is_dir() else path
    weights = networks.checkpoints.read(path)
    facts = _facts(settings)
    stored, said = weights.meta.get("arch"), weights.meta.get("preprocess") or {}
    if stored and stored["arch"] != settings.arch:
        raise InputError(
            f"the classifier in '{path}' is a {stored['arch']}, the config's arch is {settings.arch}; they must agree"
        )
    if stored:
        network = networks.build(**stored)
    else:
        shape = {
            name: getattr(settings, name)
            for name in ("depth", "width")
            if getattr(settings, name) is not None
        }
        classes = settings.num_classes or (facts.num_classes if facts else None)
        if classes is None:
            raise InputError(
                f"num_classes is needed in the config for the data set '{settings.id_dataset}'"
            )
        network = networks.build(
            settings.arch,
            classes,
            in_channels=facts.channels if facts else 3,
            image_size=settings.size or facts and facts.size,
            **shape,
            **settings.model_args,
        )
    networks.checkpoints.load_into(network, weights)
    for key, ours in (("num_classes", network.fc.out_features), ("z_dim", network.fc.in_features)):
        if getattr(settings, key) not in (None, ours):
            raise InputError(
                f"{key} is {getattr(settings, key)} in the config, but the classifier in '{path}' has {ours}; they must agree"
            )
    channels = network.arch["in_channels"]
    constants = [
        getattr(settings, name) or said.get(name) or (HALF,) * channels for name in ("mean", "std")
    ]
    network.requires_grad_(False)
    return network, Preprocess(*constants), path


def _newest_classifier(settings: Settings, context: Context) -> Path:
    shape = {
        name: getattr(settings, name)
        for name in ("depth", "width")
        if getattr(settings, name) is not None
    }
    command = (
        f"python3 classifier_pretraining.py -dataset {settings.id_dataset} -arch {settings.arch}"
    )
    command += "".join(f" -{name} {value}" for name, value in shape.items())
    match = {
        "kind": "classifier",
        "id_dataset": settings.id_dataset,
        "arch": settings.arch,
        **shape,
    }
    return runs.find_newest(context.checkpoints_dir, match, command=command).best


def id_training_images(settings: Settings, context: Context) -> ImageSet:
    """The whole training set of the classifier, not augmented; with -limit a seeded choice, because files are ordered by class."""
    facts = _facts(settings)
    size = settings.size or (facts.size if facts else None)
    images = load(
        settings.id_dataset,
        "train",
        context.data_dir,
        size=size,
        resize=settings.resize or (facts.resize if facts else None),
        download=context.download,
    )
    if context.limit is None or context.limit >= len(images):
        return images
    return images.subset(
        np.sort(np.random.RandomState(settings.seed).permutation(len(images))[: context.limit])
    )


def find(settings: Settings, context: Context, file: str = "best.pt", **more) -> Path:
    """The newest finished run of exactly this configuration; a failure names the nearest run there is."""
    match = {
        "kind": "heatmap",
        **{key: value for key, value in _config(settings).items() if key in IDENTITY},
        **(more or {"finished": True}),
    }
    if context.limit is None:
        match["limit"] = None
    try:
        return runs.find_newest(context.checkpoints_dir, match, file=file).folder
    except InputError:
        what = f"no {'finished run' if not more else 'run'} of exactly this configuration in '{context.checkpoints_dir}'"
        try:
            close = runs.find_newest(
                context.checkpoints_dir,
                {"kind": "heatmap", "id_dataset": settings.id_dataset, "arch": settings.arch},
                file=file,
            )
        except InputError:
            raise InputError(f"{what}; train one: python3 ood_training.py -config CONFIG") from None
        differs = ", ".join(
            f"{key} {close.config.get(key)} instead of {value}"
            for key, value in match.items()
            if close.config.get(key) != value
        )
        raise InputError(
            f"{what}; '{close.folder.name}' differs in {differs}: name it with -checkpoint_name, or train: python3 ood_training.py -config CONFIG"
        ) from None


def _to_resume(settings: Settings, context: Context) -> runs.Run | None:
    """The run to continue; None for a new one."""
    if not context.resume:
        return None
    if context.out_dir is None:
        return runs.Run(find(settings, context, "config.json", seed=settings.seed))
    if not runs.holds_run(context.out_dir):
        context.log(f"no run in {context.out_dir} yet: beginning one")
        return None
    run = runs.reopen(context.out_dir)
    if run.config.get("kind") != "heatmap":
        raise InputError(
            f"'{run.folder}' holds a run of kind '{run.config.get('kind')}', not a heatmap decoder's"
        )
    return run


def _adopt(settings: Settings, folder: Path) -> Settings:
    """The settings of the run that a weight file lies in, checked against those asked for."""
    stored = runs.Run(folder).config or _released_config(folder)
    if stored.get("kind", "heatmap") != "heatmap":
        raise InputError(
            f"'{folder}' holds a run of kind '{stored['kind']}', not a heatmap decoder's"
        )
    for key in ("id_dataset", "arch"):
        if stored.get(key, getattr(settings, key)) != getattr(settings, key):
            raise InputError(
                f"'{folder}' was trained with {key} {stored[key]}, the config says {getattr(settings, key)}; they must agree"
            )
    if settings.fw_layers not in (1, stored.get("fw_layers", settings.fw_layers)):
        raise InputError(
            f"'{folder}' was trained with fw_layers {stored['fw_layers']}, now {settings.fw_layers} is asked for; leave -fw_layers out"
        )
    if "kind" in stored:
        return dataclasses.replace(
            _settings_of(stored), classifier=settings.classifier or stored.get("classifier")
        )
    fw_layers = stored.get("fw_layers", settings.fw_layers)
    return dataclasses.replace(
        settings,
        fw_layers=fw_layers,
        pairing="released",
        scaling=settings.scaling if fw_layers == settings.fw_layers else None,
    )


def _released_config(folder: Path) -> dict:
    """What an authors' config.txt (a printed dict) says; {} when there is none."""
    try:
        text = (folder / "config.txt").read_text()
        found = ast.literal_eval(text[text.index("{") : text.rindex("}") + 1])
    except (OSError, ValueError, SyntaxError):
        return {}
    return (
        {key: value for key, value in found.items() if key in ("id_dataset", "arch", "fw_layers")}
        if isinstance(found, dict)
        else {}
    )


def _stored_scale(meta: dict, settings: Settings, file: Path) -> Scale:
    if settings.scaling == "none":
        return Scale()
    if "min" not in meta or "max" not in meta:
        raise InputError(
            f'\'{file}\' does not say by which min and max features are scaled; set "scaling": "none" in the config'
        )
    return Scale(settings.scaling, float(meta["min"]), float(meta["max"]), settings.batch_size)


def _settings_of(config: dict) -> Settings:
    return build(
        Settings,
        {f.name: config[f.name] for f in dataclasses.fields(Settings) if f.name in config},
        "config.json",
    )


def _config(settings: Settings) -> dict:
    return {key: value for key, value in to_dict(settings).items() if key != "epochs"}


def _facts(settings: Settings):
    return None if is_folder_path(settings.id_dataset) else info(settings.id_dataset)


def _stem(settings: Settings) -> str:
    dataset = (
        Path(settings.id_dataset).resolve().name
        if is_folder_path(settings.id_dataset)
        else settings.id_dataset
    )
    return f"{dataset}_{settings.arch}_ood_fw{settings.fw_layers}"


def _check_images(images: ImageSet, classifier) -> None:
    wanted = (
        classifier.arch["in_channels"],
        classifier.arch["image_size"],
        classifier.arch["image_size"],
    )
    if images.shape != wanted:
        raise InputError(
            f"'{images.name}' has images {images.shape}, the classifier takes {wanted}; give size and resize in the config"
        )
