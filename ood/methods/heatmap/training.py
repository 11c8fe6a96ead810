"""Training of the heatmap decoder on what the frozen classifier computes once.

Source: Hornauer & Belagiannis, WACV 2023, arXiv 2211.08115; see ood.methods.heatmap.method.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from ood import cli
from ood.config import InputError, build
from ood.data import ImageSet, auxiliary
from ood.methods.heatmap.classifier import (
    COPY,
    check_images,
    id_training_images,
    load_classifier,
)
from ood.methods.heatmap.settings import FREE, IDENTITY, Settings
from ood.methods.heatmap.targets import (
    DecoderBatches,
    Pixels,
    StageMaps,
    fit_scale,
    nearest_id,
    pair_as_released,
)
from ood.training import loop, runs
from ood.training.context import Context

KIND = runs.Kind(
    "heatmap", Settings, "a heatmap decoder", free=FREE, same=IDENTITY, length="n_epochs"
)


def train_decoder(make: Callable, settings: Settings, context: Context) -> runs.Run:
    """Train the decoder of a classifier that exists already, and return the run folder.

    Continue a run when context.resume is set.

    Args:
        make: (classifier, decoder, preprocess, settings, context) -> a `Heatmap`.
    Raises: InputError when the classifier or the images are missing or do not fit, or when the
        settings contradict the run to be continued.
    """
    run = _to_resume(settings, context)
    resumed = bool(run)
    if run:
        settings = _continued(run, settings)
    cli.set_seed(settings.seed, context.deterministic)
    classifier, preprocess, source = load_classifier(settings, context, run and run.folder)
    decoder = context.networks.decoder_for(classifier, settings.fw_layers, **settings.decoder)
    method = make(classifier, decoder, preprocess, settings, context)
    known = id_training_images(settings, context)
    check_images(known, classifier)
    outliers = _draw_outliers(settings, context, known)
    batches = training_batches(method, known, outliers)

    run = run or _create(settings, context, source, method.classifier_weights)
    with run.locked():
        _begin(run, method, source, {"train": known, "ood": outliers}, resumed)
        _fit(method, batches, run)
        run.update(finished=True)
    return run


def _begin(run: runs.Run, method, source: Path, images: dict[str, ImageSet], resumed: bool) -> None:
    """Check the classifier, keep a copy of it, and log what is needed to repeat the run."""
    settings, context, known = method.settings, method.context, images["train"]
    theirs = run.config.get("classifier_weights", method.classifier_weights)
    if theirs != method.classifier_weights:
        raise InputError(
            f"the run in '{run.folder}' began with another classifier than '{source}'; "
            f"keep its {COPY}, or start a new run"
        )
    if not (run.folder / COPY).is_file():
        classifier, preprocess, size = method.classifier, method.preprocess, known.shape[1]
        facts = (preprocess, size, known.class_names)
        run.save(COPY, runs.payload(context.networks, classifier, 0, {}, *facts))
    run.update(n_epochs=settings.n_epochs, finished=False)
    run.begin(
        settings,
        context.device,
        {"classifier": method.digest, **{part: of.digest for part, of in images.items()}},
        resumed=resumed,
        **{f"{part}_images": len(of) for part, of in images.items()},
    )
    context.log(
        f"classifier {source} | {len(known)} ID, {len(images['ood'])} auxiliary images | "
        f"pairing {settings.pairing} | run folder {run.folder}"
    )


def _fit(method, batches: DecoderBatches, run: runs.Run) -> None:
    """Run the epochs."""
    settings, context, decoder = method.settings, method.context, method.decoder

    facts = {
        "min": method.scale.low,
        "max": method.scale.high,
        "fw_layers": settings.fw_layers,
        "classifier_weights": method.classifier_weights,
    }

    def pack(epoch, metrics):
        return runs.payload(context.networks, decoder, epoch, metrics, **facts)

    optimizer = loop.make_optimizer(
        "adam", decoder.parameters(), settings.lr, betas=(settings.b1, settings.b2)
    )
    schedule = loop.Schedule(optimizer, "constant", settings.n_epochs)
    with runs.board(run, context.tensorboard) as tell:
        loop.fit(
            method.loss,
            decoder,
            batches,
            loop.Plan(
                epochs=settings.n_epochs,
                optimizer=optimizer,
                schedule=schedule,
                precision=settings.precision,
            ),
            run,
            pack,
            loop.Hooks(say=context.log, tell=tell),
            resume=context.resume,
        )


def training_batches(method, known: ImageSet, outliers: ImageSet) -> DecoderBatches:
    """Compute once everything that the decoder trains on. Set the method's scale on the way."""
    settings, device, count = method.settings, method.device, len(known)
    seen, novel = method.outputs(known), method.outputs(outliers)
    predicted, predicted_novel = seen.logits.argmax(1), novel.logits.argmax(1)
    partner = nearest_id(
        seen.features.to(device),
        predicted.to(device),
        novel.features.to(device),
        predicted_novel.to(device),
    )
    if settings.pairing == "released":
        partner = pair_as_released(partner, predicted_novel)
    pixels = Pixels([known, outliers], device)
    maps = passes = None
    if settings.fw_layers > 1:
        maps = StageMaps(
            method.classifier,
            pixels,
            method.input_of,
            settings.fw_layers - 1,
            settings.batch_size,
            lambda: loop.autocast(device, settings.precision),
        )
        maps.keep()

        def passes():
            return (maps(rows) for rows in torch.arange(count).split(settings.batch_size))

    method.scale = fit_scale(settings.scaling, seen.features, passes, settings.batch_size)
    return DecoderBatches(
        torch.cat([seen.features, novel.features]),
        torch.cat([predicted, predicted_novel]),
        torch.cat([torch.arange(count), partner]),
        pixels,
        batch_size=settings.batch_size,
        seed=settings.seed,
        device=device,
        scale=method.scale,
        maps=maps,
    )


def _draw_outliers(settings: Settings, context: Context, known: ImageSet) -> ImageSet:
    channels, size, _ = known.shape
    return auxiliary.draw(
        settings.ood_dataset,
        settings.num_ood,
        settings.seed,
        context.data_dir,
        size=size,
        channels=channels,
        resize=settings.resize,
        resizing=settings.resizing or "test",
        download=context.download,
        limit=context.limit,
    )


# ---- the run folder --------------------------------------------------------------------------


def find(settings: Settings, context: Context) -> Path:
    """Return the folder of the newest finished run of exactly this configuration.

    Scoring needs no auxiliary outliers. So if there is no such run, the newest one that only
    differs in its auxiliary set is taken. The log names that set, see `Heatmap.load`.

    Raises: InputError when there is none. The message names the nearest run there is.
    """
    match = KIND.match(settings.config(), finished=True, **_limit(context))
    root = context.checkpoints_dir
    try:
        return runs.find_newest(root, match).folder
    except InputError:
        del match["ood_dataset"]
    command = f"{context.training}, or name another run with -checkpoint_name"
    return runs.find_newest(root, match, command=command).folder


def _to_resume(settings: Settings, context: Context) -> runs.Run | None:
    """Return the run to continue, or None for a new one."""
    if not context.resume:
        return None
    run = KIND.to_resume(
        settings.config(),
        context.checkpoints_dir,
        context.out_dir,
        seed=settings.seed,
        **_limit(context),
    )
    if run is None:
        context.log(f"no run in {context.out_dir} yet: beginning one")
    return run


def _limit(context: Context) -> dict:
    """Return what to match so that a quick look is not taken for a run on all images."""
    return {"limit": None} if context.limit is None else {}


def _continued(run: runs.Run, settings: Settings) -> Settings:
    """Return the stored settings, with what may change taken from `settings`."""
    values = KIND.continued(run, settings.config())
    return build(Settings, {**values, "classifier": run.config["classifier"]}, "config.json")


def _create(settings: Settings, context: Context, source: Path, weights: str) -> runs.Run:
    config = {
        **settings.config(),
        "limit": context.limit,
        "classifier": str(source),
        "classifier_weights": weights,
        "finished": False,
    }
    stem, root = settings.stem(), context.checkpoints_dir
    return KIND.create(stem, config, root=root, out_dir=context.out_dir)
