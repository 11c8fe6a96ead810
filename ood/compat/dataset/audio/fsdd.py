"""The Free Spoken Digit Dataset."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from ood.compat.dataset.base import DatasetError, look
from ood.compat.papers import Info


class FSDD(Dataset):
    """Recordings of spoken digits, 8 kHz, version 1.0.8. SciPy reads them, without torchaudio.

    Items are (waveform, digit): an int16 array (T,) and an int in 0..9. They are sorted by file
    name.

    Args:
        root: data root; the recordings lie in a folder below it, the same as in pytorch-ood.
        transform: function of the waveform.
        target_transform: function of the digit. Its result is made an int.
        download: fetch the set if it is missing.

    Attributes:
        files: path of each recording. speakers: who speaks in it.
        metadata: what is known of three of the speakers.

    Raises: DatasetError (a RuntimeError) if the set is missing or cannot be fetched.
    Source: Jackson et al., https://github.com/Jakobovski/free-spoken-digit-dataset
    """

    info = Info()
    metadata = {
        "jackson": {"gender": "male", "accent": "USA/neutral", "language": "english"},
        "nicolas": {"gender": "male", "accent": "BE/French", "language": "english"},
        "theo": {"gender": "male", "accent": "USA/neutral", "language": "english"},
    }

    def __init__(self, root, transform=None, target_transform=None, download=False):
        self.root, self.transforms, self.target_transform = root, transform, target_transform
        found = look("fsdd", "test", root, download=download)
        folder = Path(found.folder) / found.paths[0] / "recordings"
        self.files = sorted(map(str, folder.glob("*.wav")))
        if not self.files:
            raise DatasetError(f"no recordings (*.wav) in '{folder}'; remove it and fetch it again")

    @property
    def speakers(self) -> list[str]:
        return [Path(file).name.split("_")[1] for file in self.files]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        from scipy.io import wavfile

        waveform = wavfile.read(self.files[index])[1]
        digit = int(Path(self.files[index]).name.split("_")[0])
        if self.transforms:
            waveform = self.transforms(waveform)
        if self.target_transform:
            digit = self.target_transform(digit)
        return waveform, int(digit)

    def __repr__(self) -> str:
        return f"FSDD({len(self)} recordings)"
