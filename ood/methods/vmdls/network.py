"""The parts of VMDLS that training needs: encoder with two heads, running class means, balanced batches, learning rates.

Source: Dinari & Freifeld, UAI 2022, in the order of epochs that their training library gives: margin, training, validation with the
Gaussians of the epoch before, then new means and Gaussians.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ood.training.loop import Schedule

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
