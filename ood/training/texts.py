"""Train a text classifier, and fine-tune it with outliers; resumable like every training.

    network = GRUClassifier(20, len(vocabulary))
    plain = train(network, known, Settings(), "checkpoints/plain", words=vocabulary.words)
    network.load_state_dict(read(plain)["state_dict"])
    train(network, known, Settings(exposed=True), "checkpoints/exposed", outliers=outliers)

Source: Hendrycks et al., "Deep Anomaly Detection with Outlier Exposure", ICLR 2019, arXiv
1812.04606, section 4.3, and the authors' NLP_classification/train.py and train_OE.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ood.config import InputError, to_dict
from ood.data.texts import TokenSet
from ood.losses import OutlierExposureLoss
from ood.training import loop, runs
from ood.training.batches import ImageBatches, MixedBatches

FORMAT = "ood text classifier 1"


@dataclass(frozen=True)
class Settings:
    """How a text classifier is trained. The defaults are the authors'.

    Attributes:
        epochs: passes over the known texts.
        batch_size: known texts in a step, and as many outliers.
        lr: Adam's rate at the beginning; it falls to 0 along a cosine, here with every step, in the
            authors' code with every epoch.
        alpha: weight of the outliers' term; 1 in the experiments on text.
        exposed: train with outliers.
        seed: of the order of the texts.
        data: digests of the texts; `train` fills it in.
    """

    epochs: int = 5
    batch_size: int = 64
    lr: float = 0.01
    alpha: float = 1.0
    exposed: bool = False
    seed: int = 0
    data: str = ""
    schedule: str = "cosine"


KIND = runs.Kind("text", Settings, what="a text classifier", free=())


def train(
    network: nn.Module,
    known: TokenSet,
    settings: Settings,
    folder: str | Path,
    *,
    outliers: TokenSet | None = None,
    words: Sequence[str] = (),
) -> Path:
    """Train `network` from the weights it has, or go on with the run in `folder`.

    Args:
        network: token numbers (N, L) -> logits (N, C). It is trained on the device it is on.
        outliers: auxiliary outliers; needed if `settings.exposed`. Each step takes as many as known
            texts. They begin anew when they are used up.
        words: of the vocabulary, to be kept with the weights.

    Returns: the file of the last epoch's weights, see `read`. A run that is done is not repeated.
    Raises: InputError if the folder holds a run of other settings or other texts.
    """
    if settings.exposed != (outliers is not None):
        raise InputError("outliers are given if, and only if, the settings say exposed=True")
    device = next(network.parameters()).device
    digests = {"known": known.digest} | ({"outliers": outliers.digest} if outliers else {})
    settings = Settings(**{**to_dict(settings), "data": " ".join(digests.values())})
    run = KIND.to_resume(to_dict(settings), Path(folder).parent, folder)
    resumed = run is not None
    if run is None:
        run = KIND.create("text", to_dict(settings), out_dir=folder)
    KIND.continued(run, to_dict(settings))
    if any(record.get("event") == "end" for record in run.records()):
        return run.best
    batches = _batches(known, outliers, settings, device)
    loss = OutlierExposureLoss(settings.alpha)

    def step(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict]:
        tokens, labels = batch
        logits = network(tokens)
        right = (logits.argmax(1) == labels)[labels >= 0]
        return loss(logits, labels), {"accuracy": right.float().mean()}

    def pack(epoch: int, metrics: dict) -> dict:
        held = {"format": FORMAT, "state_dict": network.state_dict(), "words": list(words)}
        return {**held, "epoch": epoch, "metrics": metrics}

    optimizer = loop.make_optimizer("adam", network.parameters(), settings.lr)
    schedule = loop.Schedule(optimizer, settings.schedule, settings.epochs)
    plan = loop.Plan(settings.epochs, optimizer, schedule)
    with run.locked():
        run.begin(settings, device, digests, resumed=resumed, train_texts=len(known))
        loop.fit(step, network, batches, plan, run, pack, resume=resumed)
        run.log({"event": "end", "epoch": settings.epochs})
    return run.best


def read(file: str | Path) -> dict:
    """Read a weight file: `state_dict`, `words`, `epoch`. Nothing in it is executed.

    Raises: InputError for a file of another kind.
    """
    held = runs.Run(Path(file).parent).load(Path(file).name)
    if held.get("format") != FORMAT:
        raise InputError(f"'{file}' holds no text classifier")
    return held


def _batches(known: TokenSet, outliers: TokenSet | None, settings: Settings, device: torch.device):
    common = dict(
        batch_size=settings.batch_size,
        transform=lambda tokens, generator: tokens.to(device),
        device=device,
        seed=settings.seed,
    )
    batches = ImageBatches(known, **common)
    if outliers is None:
        return batches
    return MixedBatches(batches, ImageBatches(outliers.as_outliers(), **common))
