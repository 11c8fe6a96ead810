"""PixMix as a data set around another one, over `ood.data.pixmix`."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from ood.data import Mixing, PixMix, pixmix

__all__ = ["PixMixDataset", "add", "get_ab", "multiply"]


class PixMixDataset(Dataset):
    """Images of a data set, each mixed with changed copies of itself and with pictures.

    Args:
        dataset: gives (image, label); the image is a PIL image, or a tensor (C, H, W), uint8 or
            float in pixel units.
        mixing_set: gives (picture, label); labels are ignored. A picture of another size is
            enlarged or reduced until it covers the image, and cropped at random.
        beta: of the Beta distributions that the weights follow.
        aug_severity: largest strength of an operation, in (0.1, 10].
        k: largest number of rounds.
        std, mean: normalisation, one value per channel.

    Raises: InputError for a parameter out of its range, when the set is made.

    Source: Hendrycks et al., CVPR 2022, arXiv 2112.05135. As in the authors' code there are nine
        operations, each of a random strength up to aug_severity. pytorch-ood has five of them, and
        takes aug_severity itself as bits, degrees or threshold.
    """

    def __init__(
        self,
        dataset,
        mixing_set,
        beta=3,
        aug_severity=3,
        k=4,
        std=(1.0, 1.0, 1.0),
        mean=(1.0, 1.0, 1.0),
    ):
        self.dataset, self.mixing_set = dataset, mixing_set
        self.beta, self.aug_severity, self.k = beta, aug_severity, k
        self.mixing = Mixing(k=k, beta=beta, severity=aug_severity, base="none")
        self.std, self.mean = tuple(std), tuple(mean)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> tuple[Tensor, object]:
        """Return the mixed and normalised image, float32 (C, H, W), and its label."""
        image, label = self.dataset[i]
        picture, _ = self.mixing_set[int(torch.randint(len(self.mixing_set), ()))]
        image = _as_tensor(image)
        picture = _covering(_as_tensor(picture, len(image)), image)
        mixed = PixMix(_OnePicture(picture), self.mixing)(image[None])[0]
        return self.normalize(mixed), label

    def augment_input(self, image: Image.Image, severity) -> Image.Image:
        """Change a PIL image by one operation at random."""
        given = _as_tensor(image)[None]
        once = Mixing(k=0, severity=severity, probability=1, base="none")
        changed = pixmix.as_bytes(PixMix(_OnePicture(given[0]), once)(given))[0]
        return Image.fromarray(changed.movedim(0, 2).squeeze(2).numpy())

    def normalize(self, image: Tensor) -> Tensor:
        """Return (image - mean) / std. One value, or equal ones, serve any number of channels."""
        mean, std = (
            torch.tensor(v if len(set(v)) > 1 else v[:1]).view(-1, 1, 1)
            for v in (self.mean, self.std)
        )
        return (image - mean) / std


class _OnePicture:
    """A mixing set of one picture (C, H, W), as far as PixMix looks at it."""

    name = "mixing set"

    def __init__(self, picture: Tensor):
        self.picture = picture

    def __len__(self) -> int:
        return 1

    def read(self, rows) -> Tensor:
        return self.picture[None]


def get_ab(beta):
    """Draw the weights (a, b) of one mixing, see `ood.data.pixmix.weights`."""
    a, b = pixmix.weights(beta, *torch.rand(3))
    return float(a), float(b)


def add(img1: Tensor, img2: Tensor, beta) -> Tensor:
    """Mix two images in pixel units by a weighted sum, not clipped."""
    return pixmix.summed(img1, img2, *get_ab(beta))


def multiply(img1: Tensor, img2: Tensor, beta) -> Tensor:
    """Mix two images in pixel units by a weighted product, not clipped."""
    return pixmix.multiplied(img1, img2, *get_ab(beta))


def _as_tensor(image, channels: int | None = None) -> Tensor:
    """Return a PIL image or a tensor as uint8 (C, H, W). A PIL image is grey or has 3 colours."""
    if isinstance(image, Tensor):
        return pixmix.as_bytes(image)
    grey = channels == 1 or channels is None and image.mode in ("1", "L")
    array = np.array(image.convert("L" if grey else "RGB"))
    return torch.from_numpy(array[None] if grey else array.transpose(2, 0, 1).copy())


def _covering(picture: Tensor, image: Tensor) -> Tensor:
    """Resize a picture (C, h, w) so that it covers the image (C, H, W) and no more."""
    sides, wanted = picture.shape[1:], image.shape[1:]
    if sides == wanted:
        return picture
    scale = max(there / here for here, there in zip(sides, wanted))
    size = [max(there, round(here * scale)) for here, there in zip(sides, wanted)]
    resized = functional.interpolate(picture[None].float(), size, mode="bilinear", antialias=True)
    return resized[0].round().clamp(0, 255).to(torch.uint8)
