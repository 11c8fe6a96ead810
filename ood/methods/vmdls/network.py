"""What VMDLS trains: the encoder with two heads, the classes' statistics, the learning rates.

Source: Dinari & Freifeld, UAI 2022. An epoch has the order that their training library gives it:
margin, training, validation with the Gaussians of the epoch before, new means and Gaussians.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ood.training.loop import Schedule

UNFREEZE_AFTER = 21  # 0-based index of the last epoch in which finetuning trains the heads alone
FIRST_STAGE = {  # class of an encoder -> its first stage; others run all their stages
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
    """Map images to features, and those to mu and log-variance of a D-dimensional Gaussian.

    Its weights are named as in the authors' files: encoder.*, fc_mu, fc_var.

    Args:
        encoder: a Classifier. Its head is not used. The DenseNet keeps it, because the authors'
            files hold it; other encoders lose it.
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
        self.encoder = encoder
        self.fc_mu = nn.Linear(width, latent_dim)
        self.fc_var = nn.Linear(width, latent_dim)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mu and std, each (N, D), of images (N, C, H, W)."""
        features = self.encoder.features(images).float()
        with torch.autocast(images.device.type, enabled=False):
            return self.fc_mu(features), torch.exp(0.5 * self.fc_var(features))

    def ensemble(self, images: Tensor) -> Tensor:
        """Return (N, F): the pooled taps k = 1, 2, 3, the features and mu, joined.

        All come from one pass through the encoder.
        """
        taps = [tap.float() for tap in self.encoder.taps(images)]
        with torch.autocast(images.device.type, enabled=False):
            return torch.cat([*taps, self.fc_mu(taps[-1])], 1)

    def first_tap(self, images: Tensor) -> Tensor:
        """Return the first tap (N, C_1), in which reconstructions are compared with images.

        Only the layers before it are run.
        """
        first = FIRST_STAGE.get(type(self.encoder).__name__)
        if first:
            return first(self.encoder, images).mean((2, 3)).float()
        return self.encoder.taps(images)[0].float()


STATE = ("means", "covariances", "bounds", "seen")


class ClassStatistics:
    """The classes' Gaussians, from the samples z of an epoch.

    They stay fixed until the next epoch ends. A class without samples keeps its Gaussian.

    Attributes:
        means: (K, D), the centres of the KL term; zero at first.
        covariances: (K, D, D), the identity at first.
        bounds: (K,), the log-likelihood above which a sample counts as known.
        seen: (K,), whether a class ever had samples.
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
        """Compute means, covariances and bounds from the samples added since the last call.

        A bound is a quantile of the class's own log-likelihoods. As in the released code, they are
        those under the Gaussians before this call.
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
        """Return log N(z; mean_c, covariance_c): (N, K), or (N,) for the classes of `labels`.

        A singular covariance counts as N(0, I).
        """
        z, means = z.double(), self.means.double().clone()
        factors, failed = torch.linalg.cholesky_ex(self.covariances.double())
        singular = failed > 0
        means[singular] = 0
        factors[singular] = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
        columns = []
        for c in range(len(means)):
            centred = (z - means[c]).T  # (D, N)
            whitened = torch.linalg.solve_triangular(factors[c], centred, upper=False)
            distances = whitened.square().sum(0) + z.shape[1] * np.log(2 * np.pi)
            columns.append(-0.5 * distances - factors[c].diagonal().log().sum())
        result = torch.stack(columns, 1)
        return result if labels is None else result.gather(1, labels[:, None]).squeeze(1)

    def state_dict(self) -> dict:
        return {name: getattr(self, name).cpu() for name in STATE}

    def load_state_dict(self, state: dict) -> None:
        for name in STATE:
            getattr(self, name).copy_(state[name])


class LatentSchedule(Schedule):
    """Learning rate that is multiplied by `gamma` every `step_size` epochs.

    Finetuning has two parts: `head_lr` until epoch 21 (0-based), then `lr` with a count of its own.
    As released, that count starts at one: the drops come at the epochs 21 + step_size,
    21 + 2 step_size, ...

    Args:
        head_lr: None: no finetuning.
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
        """Return the learning rate of an epoch (0-based)."""
        if self.head_lr is None:
            return self.lr * self.gamma ** (epoch // self.step_size)
        if epoch <= UNFREEZE_AFTER:
            return self.head_lr * self.gamma ** (epoch // self.step_size)
        return self.lr * self.gamma ** ((epoch - UNFREEZE_AFTER) // self.step_size)

    def start(self, position: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(int(position + 1e-9))
