"""The parts of VMDLS that training needs: encoder with two heads, running class means, balanced batches, learning rates.

Source: Dinari & Freifeld, UAI 2022, in the order of epochs that their training library gives: margin, training, validation with the
Gaussians of the epoch before, then new means and Gaussians.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ood import distributed
from ood.config import InputError
from ood.data.transforms import PartGenerator
from ood.train import RESIDENT_BYTES, Schedule, mix

UNFREEZE_AFTER = 21  # 0-based index of the last epoch in which finetuning trains the heads alone
FIRST_STAGE = {  # class of an encoder -> its first stage; of other encoders all stages are run
    "MnistConv": lambda e, x: e.encoder[:3](x),
    "VGG": lambda e, x: e.encoder[:5](x),
    "DenseNet": lambda e, x: e.trans1(e.block1(e.conv1(x))),
    "WRN": lambda e, x: e.block1(e.conv1(x)),
    "SmallCNN": lambda e, x: e.stage1(x),
    "ResNet": lambda e, x: e.layer1(
        F.max_pool2d(F.relu(e.bn1(e.conv1(x))), 2 if e.stem_pool else 1)
    ),
}


class LatentNetwork(nn.Module):
    """images -> features -> (mu, log-variance) of a D-dimensional Gaussian. Keys as in the authors' files: encoder.*, fc_mu, fc_var.

    Args:
        encoder: a Classifier. Its head is not used; the DenseNet keeps it, because their files hold it, the others lose it.
    """

    def __init__(self, encoder: nn.Module, latent_dim: int):
        super().__init__()
        width = encoder.fc.in_features
        self.arch = {
            "arch": "vmdls",
            "encoder": encoder.arch,
            "num_classes": encoder.arch["num_classes"],
            "latent_dim": latent_dim,
        }
        if encoder.arch["arch"] != "densenet":
            encoder.fc = nn.Identity()
        self.encoder, self.fc_mu, self.fc_var = (
            encoder,
            nn.Linear(width, latent_dim),
            nn.Linear(width, latent_dim),
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) -> mu, std, each (N, D)."""
        features = self.encoder.features(images).float()
        with torch.autocast(images.device.type, enabled=False):
            return self.fc_mu(features), torch.exp(0.5 * self.fc_var(features))

    def ensemble(self, images: Tensor) -> Tensor:
        """(N, F): pooled taps k = 1, 2, 3, the features and mu, joined, all from one pass through the encoder."""
        taps = [tap.float() for tap in self.encoder.taps(images)]
        with torch.autocast(images.device.type, enabled=False):
            return torch.cat([*taps, self.fc_mu(taps[-1])], 1)

    def first_tap(self, images: Tensor) -> Tensor:
        """(N, C_1): the first of the taps, in which reconstructions are compared; only the layers before it are run."""
        first = FIRST_STAGE.get(type(self.encoder).__name__)
        return (
            first(self.encoder, images).mean((2, 3)) if first else self.encoder.taps(images)[0]
        ).float()


class ClassStatistics:
    """Class means and Gaussians of the samples z of an epoch, fixed until the next one ends; a class without samples keeps its own.

    Attributes:
        means: (K, D), zero at first: the centres of the KL term. seen: (K,) whether a class ever had samples.
        covariances: (K, D, D), the identity at first. bounds: (K,) log-likelihood above which a sample counts as known.
    """

    def __init__(self, num_classes: int, latent_dim: int, quantile: float, device: torch.device):
        self.quantile = quantile
        self.means = torch.zeros(num_classes, latent_dim, device=device)
        self.covariances = torch.eye(latent_dim, device=device).repeat(num_classes, 1, 1)
        self.bounds = torch.zeros(num_classes, device=device)
        self.seen = torch.zeros(num_classes, dtype=torch.bool, device=device)
        self.samples: list[tuple[Tensor, Tensor]] = []

    def add(self, z: Tensor, labels: Tensor) -> None:
        self.samples.append((z.detach(), labels))

    def close_epoch(self) -> None:
        """New means, covariances and bounds from the samples added since the last call.

        A bound is a quantile of the class's own log-likelihoods under the Gaussians before this call: so the released code has it.
        """
        z, labels = (torch.cat(parts) for parts in zip(*self.samples))
        self.samples.clear()
        own = self.log_likelihood(z, labels) if self.seen.any() else None
        for c in labels.unique():
            of_class = z[labels == c].double()
            if own is not None:
                self.bounds[c] = torch.quantile(own[labels == c], self.quantile).float()
            self.means[c] = of_class.mean(0).float()
            centred = of_class - of_class.mean(0)
            self.covariances[c] = (centred.T @ centred / len(of_class)).float()
            self.seen[c] = True

    def log_likelihood(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """log N(z; mean_c, covariance_c): (N, K), or (N,) of the labels' classes; a singular covariance counts as N(0, I)."""
        z, means, covariances = (
            z.double(),
            self.means.double().clone(),
            self.covariances.double().clone(),
        )
        factors, failed = torch.linalg.cholesky_ex(covariances)
        singular = failed > 0
        means[singular] = 0
        factors[singular] = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
        columns = []
        for c in range(len(means)):
            whitened = torch.linalg.solve_triangular(
                factors[c], (z - means[c]).T, upper=False
            )  # (D, N)
            columns.append(
                -0.5 * (whitened.square().sum(0) + z.shape[1] * np.log(2 * np.pi))
                - factors[c].diagonal().log().sum()
            )
        result = torch.stack(columns, 1)
        return result if labels is None else result.gather(1, labels[:, None]).squeeze(1)

    def state_dict(self) -> dict:
        return {
            name: getattr(self, name).cpu() for name in ("means", "covariances", "bounds", "seen")
        }

    def load_state_dict(self, state: dict) -> None:
        for name in ("means", "covariances", "bounds", "seen"):
            getattr(self, name).copy_(state[name])


class BalancedBatches:
    """Batches of `batch_classes` classes with `sample_count` images each.

    Per epoch every class list is shuffled once and taken `sample_count` at a time; when fewer remain, it is shuffled and begun anew.
    The classes of a batch are drawn without replacement. As many batches as make (k + 1) * B < N, so 624 for 50,000 images and B = 80.
    Several processes share each batch out: the batch is what the loss is defined on, so it does not grow with them.

    Args:
        images: an ImageSet with labels 0..K-1; transform: (pixels, generator) -> network input.
        steps: batches per epoch instead of that rule.
    """

    def __init__(
        self,
        images,
        batch_classes: int,
        sample_count: int,
        *,
        transform: Callable,
        device: torch.device,
        seed: int = 0,
        steps: int | None = None,
    ):
        self.images, self.batch_classes, self.sample_count = images, batch_classes, sample_count
        self.transform, self.device, self.seed = transform, device, seed
        self.rows = class_rows(images.labels)
        smallest = min(map(len, self.rows))
        if not 2 <= batch_classes <= len(self.rows):
            raise InputError(
                f"batch_classes is {batch_classes}; it must be from 2 to {len(self.rows)}, the classes of {images.name}: a triplet needs two"
            )
        if not 2 <= sample_count <= smallest:
            raise InputError(
                f"sample_count is {sample_count}; it must be from 2 to {smallest}, the images of the smallest class of {images.name}"
            )
        self.steps = steps or batches_per_epoch(len(images), batch_classes * sample_count)
        if batch_classes * sample_count % distributed.world():
            raise InputError(
                f"{distributed.world()} processes cannot share batches of {batch_classes} x {sample_count} images out evenly; start another number of them"
            )
        if self.steps < 1:
            raise InputError(
                f"{len(images)} images give no batch of {batch_classes} x {sample_count}; lower batch_classes or sample_count"
            )
        array = getattr(images, "images", None)
        fits = device.type == "cuda" and array is not None and array.nbytes <= RESIDENT_BYTES
        self.resident = torch.from_numpy(np.ascontiguousarray(array)).to(device) if fits else None

    def __len__(self) -> int:
        return self.steps

    def draw(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Image numbers (steps * B,) and labels of an epoch, class by class within a batch; they follow from (seed, number)."""
        chance = np.random.default_rng(mix(self.seed, number))
        lists = [chance.permutation(rows) for rows in self.rows]
        used = [0] * len(lists)
        rows, labels = [], []
        for _ in range(self.steps):
            for c in chance.permutation(len(lists))[: self.batch_classes]:
                if used[c] + self.sample_count > len(lists[c]):
                    lists[c], used[c] = chance.permutation(lists[c]), 0
                rows.append(lists[c][used[c] : used[c] + self.sample_count])
                labels.append(np.full(self.sample_count, c))
                used[c] += self.sample_count
        return np.concatenate(rows), np.concatenate(labels)

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(this process's images (B', C, H, W), labels of the whole batch (B,)) on the device, augmented and normalised there."""
        rows, labels = self.draw(number)
        size = self.batch_classes * self.sample_count
        part = size // distributed.world()
        first = distributed.rank() * part
        mine = rows.reshape(-1, size)[:, first : first + part].reshape(-1)
        chance = PartGenerator(self.device).seed_parts(
            mix(self.seed, number, 1), distributed.rank(), distributed.world()
        )
        chance.part = (first, size)
        for pixels, batch in zip(
            self._pixels(mine, part), torch.from_numpy(labels).to(self.device).split(size)
        ):
            yield self.transform(pixels, chance), batch

    def _pixels(self, rows: np.ndarray, size: int) -> Iterator[Tensor]:
        if self.resident is not None:
            for part in torch.from_numpy(rows).to(self.device).split(size):
                yield self.resident[part]
        else:
            for pixels in self.images.batches(size, rows):
                yield pixels.to(self.device, non_blocking=True)


def batches_per_epoch(count: int, batch_size: int) -> int:
    """Number of k >= 0 with (k + 1) * batch_size < count: an exact multiple gives one less."""
    return (count - 1) // batch_size


def class_rows(labels: np.ndarray) -> list[np.ndarray]:
    """Row numbers of each class 0..K-1, in order. Raises InputError for a class without images."""
    labels = np.asarray(labels)
    rows = [np.flatnonzero(labels == c) for c in range(int(labels.max()) + 1)]
    for c, of_class in enumerate(rows):
        if not len(of_class):
            raise InputError(f"class {c} has no image; the labels must be 0..K-1")
    return rows


class LatentSchedule(Schedule):
    """x gamma every `step_size` epochs; when finetuning, rate `head_lr` to epoch 21 (0-based), then `lr` with a count of its own.

    The counter of the second part starts at one, as released: the drops come at epochs 21 + step_size, 21 + 2 step_size, ...
    """

    def __init__(
        self,
        optimizer,
        epochs: int,
        lr: float,
        step_size: int,
        gamma: float,
        head_lr: float | None = None,
    ):
        super().__init__(optimizer, "constant", epochs)
        self.lr, self.step_size, self.gamma, self.head_lr = lr, step_size, gamma, head_lr

    def rate(self, epoch: int) -> float:
        """Learning rate in a 0-based epoch."""
        if self.head_lr is None:
            return self.lr * self.gamma ** (epoch // self.step_size)
        if epoch <= UNFREEZE_AFTER:
            return self.head_lr * self.gamma ** (epoch // self.step_size)
        return self.lr * self.gamma ** ((epoch - UNFREEZE_AFTER) // self.step_size)

    def start(self, position: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(int(position + 1e-9))
