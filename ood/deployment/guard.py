"""A guard: a network, a detector and a threshold behind one call.

    import ood

    guard = ood.guard(network, train_images, detector="vim")
    decision = guard(images)
    decision.accepted, decision.predicted, decision.p_values

The guard fits its detector on one part of the training images and calibrates its threshold on the
other part, or on `calibration_images`. It promises that an ID image is accepted with probability at
least `accept`, whatever the network and the detector (`ood.deployment.calibration`).

Images may be a tensor or array (N, C, H, W), an `ood.data` set, any `torch.utils.data.Dataset` of
images or (image, label) pairs, or a `DataLoader` of such batches. The network sees them as they
are, unless `mean` and `std` are given. uint8 images are divided by 255 first.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ood import detectors
from ood.config import InputError
from ood.data import Preprocess
from ood.data.images import ArrayImages, ImageSet
from ood.deployment import detector_file, networks
from ood.deployment.calibration import calibrate, rank_of
from ood.deployment.groups import calibrate_groups, judge
from ood.detectors import Detector, ImageDetector
from ood.detectors.base import chunked_score
from ood.outputs import Outputs, extract

RECIPE = dict.fromkeys(detector_file.RECIPE)  # a guard gets images that are ready for the network


@dataclass(frozen=True)
class Decision:
    """What a guard says about N images. All tensors lie on the CPU.

    Attributes:
        accepted: (N,) bool.
        scores: (N,) float64, larger = less like the training images.
        p_values: (N,) float64; small = unlike the training images.
        predicted: (N,) int64, the class that the network predicts, accepted or not; -1 from a
            feature extractor.
        confidence: (N,) float32, its softmax probability; NaN from a feature extractor.
    """

    accepted: Tensor
    scores: Tensor
    p_values: Tensor
    predicted: Tensor
    confidence: Tensor

    def __len__(self) -> int:
        return len(self.scores)


class Guard:
    """A network that also says which images it should not judge.

    `get_params` and `set_params` follow scikit-learn, so that `sklearn.base.clone` works.

    Args:
        network: classifier; any network that `models.adapt` takes. It is put into eval mode.
        detector: name with hyper-parameters, such as "vim" or "dice:percentile=70", or a Detector.
        accept: share of ID images to accept, in (0, 1).
        confidence: as for `ood.deployment.calibration.calibrate`.
        per_class: a threshold for each predicted class.
        share: of the training images, in (0, 1), that calibrates if `fit` gets no other images. The
            network has seen them, so it is surer of them than of new images: give `fit` images that
            it has not seen whenever there are any.
        mean, std: normalisation, C values each in pixel units; None: images come normalised.
        device: where the network runs; None: where its weights are.
        batch_size: images per forward pass.
        seed: of the choice of the calibration images.

    Attributes:
        detector_: the fitted detector.
        calibration_: threshold and p-values.
        network_: the network as a Classifier.
        preprocess_: its normalisation.
    """

    def __init__(
        self,
        network: nn.Module,
        detector: str | Detector = "vim",
        accept: float = 0.95,
        confidence: float | None = None,
        per_class: bool = False,
        share: float = 0.2,
        mean=None,
        std=None,
        device: torch.device | str | None = None,
        batch_size: int = 256,
        seed: int = 0,
    ):
        self.network, self.detector = network, detector
        self.accept, self.confidence, self.per_class = accept, confidence, per_class
        self.share, self.mean, self.std = share, mean, std
        self.device, self.batch_size, self.seed = device, batch_size, seed

    def fit(self, train_images, labels=None, *, calibration_images=None) -> Guard:
        """Fit the detector and calibrate the threshold.

        Args:
            train_images: ID images that the network was trained on.
            labels: (N,) of an array of images; sets and loaders bring their own. Where there are
                none, the predicted classes stand for them.
            calibration_images: ID images that the network has not seen. None: a `share` of the
                training images.

        Returns: self.

        Raises: InputError for a wrong value, for images that do not fit the network, or for too few
            calibration images.
        """
        detector = self._new_detector()
        train = as_images(train_images, labels)
        if calibration_images is None:
            if not 0 < self.share < 1:
                raise InputError(f"share is {self.share}; it must be a fraction between 0 and 1")
            rows = np.random.default_rng(self.seed).permutation(len(train))
            count = round(self.share * len(train))
            held = None
        else:
            held = as_images(calibration_images)
            count = len(held)
        rank_of(count, self.accept, self.confidence)  # before anything is computed
        self.preprocess_ = self._normalisation(train.shape[0])
        self.network_ = self._classifier(train)
        detector.check(self.network_)
        outputs = self._outputs(detector, train, fitting=True)
        known = outputs if held is not None else outputs[torch.from_numpy(np.sort(rows[count:]))]
        if bool((known.labels < 0).all()):
            stand_in = known.predicted.clamp(min=0)  # without classes: one class
            known = dataclasses.replace(known, labels=stand_in, memo={})
        detector.fit(known if detector.requires_fit else known[:0])
        if held is None:
            again = isinstance(detector, ImageDetector) and not detector.measures_train
            outputs = self._outputs(detector, train) if again else outputs
            beside = outputs[torch.from_numpy(np.sort(rows[:count]))]
        else:
            beside = self._outputs(detector, held)
        scores = chunked_score(detector, beside).numpy()
        shares = (self.accept, self.confidence)
        self.calibration_ = (
            calibrate_groups(scores, beside.predicted.numpy(), *shares)
            if self.per_class
            else calibrate(scores, *shares)
        )
        self.detector_ = detector
        return self

    def __call__(self, images) -> Decision:
        """Judge images: scores, p-values, decisions and predicted classes."""
        self._require_fitted()
        outputs = self._outputs(self.detector_, as_images(images))
        scores = chunked_score(self.detector_, outputs)
        predicted, classes = outputs.predicted, outputs.logits.shape[1]
        confidence = outputs.logits.float().softmax(1).amax(1) if classes else scores * torch.nan
        p_values, accepted = judge(self.calibration_, scores.numpy(), predicted.numpy())
        return Decision(
            torch.from_numpy(accepted), scores, torch.from_numpy(p_values), predicted, confidence
        )

    def decision_function(self, images) -> np.ndarray:
        """Scores (N,), larger = OOD, as everywhere here; scikit-learn's own have the other sign."""
        return self(images).scores.numpy()

    def predict(self, images) -> np.ndarray:
        """The predicted class of each image (N,), -1 where the image is rejected."""
        decision = self(images)
        return torch.where(decision.accepted, decision.predicted, -1).numpy()

    @property
    def guarantee(self) -> str:
        """What the threshold promises, in one sentence."""
        self._require_fitted()
        return self.calibration_.guarantee

    def get_params(self, deep: bool = True) -> dict:
        """The arguments of the constructor by name."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def set_params(self, **values) -> Guard:
        """Change arguments of the constructor. Raises InputError for an unknown name."""
        for name, value in values.items():
            if name not in self.get_params():
                raise InputError(f"a guard has no '{name}'; it has {', '.join(self.get_params())}")
            setattr(self, name, value)
        return self

    def save(self, path: str | Path) -> Path:
        """Write detector and threshold to a .npz file; the network's weights are not in it."""
        self._require_fitted()
        return detector_file.save(
            path,
            self.detector_,
            network=self.network_,
            preprocess=self.preprocess_,
            recipe=RECIPE,
            calibration=self.calibration_,
        )

    def export(self, path: str | Path, images) -> Path:
        """Write network, detector and threshold as one graph; see `ood.deployment.export`.

        Args:
            path: ends in .pt2 (torch.export) or .onnx.
            images: a few examples (N, C, H, W), N >= 2; the graph is checked with them.

        Raises: InputError for what cannot be exported.
        """
        from ood.deployment.export import export  # reads no library before it is needed

        self._require_fitted()
        examples = next(iter(as_images(images).batches(8)))
        if len(examples) < 2:
            raise InputError("give at least two example images")
        return export(self, path, examples.float() / (255 if examples.dtype == torch.uint8 else 1))

    @classmethod
    def load(cls, path: str | Path, network: nn.Module, **options) -> Guard:
        """Read a guard that `save` wrote.

        Args:
            network: the one it was fitted on; another one is refused.
            options: device, batch_size.

        Raises: InputError as `detector_file.load`, and for a file without a threshold.
        """
        stored = detector_file.load(path)
        if stored.calibration is None:
            raise InputError(f"'{path}' holds a detector without a threshold; fit a guard")
        calibration = stored.calibration
        guard = cls(
            network,
            stored.detector,
            accept=calibration.accept,
            mean=stored.preprocess.mean,
            std=stored.preprocess.std,
            per_class=hasattr(calibration, "parts"),
            **options,
        )
        guard.preprocess_ = stored.preprocess
        guard.network_ = networks.package().adapt(
            network,
            in_channels=stored.arch.get("in_channels"),
            image_size=stored.arch.get("image_size"),
        )
        stored.check(guard.network_, f"'{path}'")
        guard.detector_, guard.calibration_ = stored.detector, calibration
        return guard

    # ---- helpers --------------------------------------------------------------------------------

    def _new_detector(self) -> Detector:
        """A detector that is not fitted yet, so that `fit` never changes the argument."""
        if isinstance(self.detector, Detector):
            return detectors.create(self.detector.name, **self.detector.hyperparameters())
        name, values = detectors.parse(self.detector)
        return detectors.create(name, **values)

    def _classifier(self, images) -> nn.Module:
        channels, height, _ = images.shape
        package = networks.package()
        return package.adapt(self.network, in_channels=channels, image_size=height)

    def _normalisation(self, channels: int) -> Preprocess:
        if (self.mean is None) != (self.std is None):
            raise InputError("give both mean and std, or neither")
        if self.mean is None:
            return Preprocess((0.0,) * channels, (1.0,) * channels)
        return Preprocess(self.mean, self.std)

    def _outputs(self, detector: Detector, images, fitting: bool = False) -> Outputs:
        """Outputs of one pass; some detectors can measure images only after they were fitted."""
        in_pass = isinstance(detector, ImageDetector) and (not fitting or detector.measures_train)
        return extract(
            self.network_,
            images,
            self.preprocess_,
            device=self.device or next(self.network_.parameters()).device,
            batch_size=self.batch_size,
            taps="taps" in detector.needs,
            image_detectors=[detector] if in_pass else [],
        )

    def _require_fitted(self) -> None:
        if not hasattr(self, "calibration_"):
            raise InputError("this guard has not seen training images yet; call fit first")


class Loaded:
    """Batches of a DataLoader as `extract` reads image sets; the pass collects the labels.

    Attributes:
        shape: (C, H, W) of the first image; all must have it.
        labels: (N,) int64, known after a pass; -1 where the loader gives images only.
    """

    digest = ""  # nothing is cached

    def __init__(self, loader: DataLoader):
        self.loader = loader
        first = loader.dataset[0]
        image = first[0] if isinstance(first, (tuple, list)) else first
        if not isinstance(image, Tensor) or image.dim() != 3:
            raise InputError(
                "the data set must give tensors (C, H, W), "
                f"got {getattr(image, 'shape', type(image).__name__)}; use ToTensor as transform"
            )
        self.shape = tuple(image.shape)
        self.labels = np.zeros(0, np.int64)

    def __len__(self) -> int:
        return len(self.loader.dataset)

    def batches(self, batch_size: int) -> Iterator[Tensor]:
        """Yield the loader's batches; its own batch size holds."""
        labels = []
        for batch in self.loader:
            images, *rest = batch if isinstance(batch, (tuple, list)) else (batch,)
            labels.append(np.asarray(rest[0]) if rest else np.full(len(images), -1))
            yield images
        self.labels = np.concatenate(labels).astype(np.int64)


def as_images(images, labels=None) -> ImageSet | Loaded:
    """Bring what a user has to what `extract` reads; see the text of the module.

    Raises: InputError for anything else, for images of another shape, or for no images.
    """
    if isinstance(images, (Tensor, np.ndarray)):
        array = images.detach().cpu().numpy() if isinstance(images, Tensor) else images
        array = array if array.dtype == np.uint8 else array.astype(np.float32)
        found = ArrayImages(array, labels, source="given")
    elif labels is not None:
        raise InputError("labels belong to an array of images; a set or loader brings its own")
    elif isinstance(images, ImageSet):
        return images
    elif isinstance(images, DataLoader) and hasattr(images.dataset, "__getitem__"):
        found = Loaded(images) if len(images.dataset) else images.dataset
    elif isinstance(images, Dataset) and hasattr(images, "__len__"):
        found = Loaded(DataLoader(images, batch_size=64)) if len(images) else images
    else:
        raise InputError(
            "images must be a tensor or array (N, C, H, W), a data set with a length, or a "
            f"DataLoader over one, got {type(images).__name__}"
        )
    if not len(found):
        raise InputError("there are no images")
    return found


def guard(network: nn.Module, train_images, detector: str | Detector = "vim", **options) -> Guard:
    """Make a guard and fit it, in one call.

    Args:
        network, detector: as for `Guard`.
        train_images: as for `Guard.fit`.
        options: of `Guard`, and `labels` and `calibration_images` of `Guard.fit`.

    Returns: the fitted guard; call it with images.
    """
    fitting = {key: options.pop(key) for key in ("labels", "calibration_images") if key in options}
    return Guard(network, detector, **options).fit(train_images, **fitting)
