"""Volumes of medical imaging in NIfTI-1 files (.nii, .nii.gz), read with NumPy alone.

Networks for images see the central slice along the third axis. The axes are taken as stored.

Source: Cox et al., "A (sort of) new image data format standard: NIfTI-1", 2004; nifti.nimh.nih.gov
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from ood.config import InputError
from ood.data import memory

ENDINGS = (".nii", ".nii.gz")
HEADER = 348  # bytes
LONGEST_HEADER = 2**24  # with its extensions
TYPES = {  # NIfTI's code of a value: NumPy's type
    2: "u1",
    4: "i2",
    8: "i4",
    16: "f4",
    64: "f8",
    256: "i1",
    512: "u2",
    768: "u4",
    1024: "i8",
    1280: "u8",
}


def is_volume(path: str | Path) -> bool:
    """Say whether a file is a volume, by its name."""
    return str(path).lower().endswith(ENDINGS)


def read_volume(path: str | Path) -> np.ndarray:
    """Read a volume (X, Y, Z), float32, with the scale of its header applied.

    A series of volumes gives its first one.

    Raises: InputError for a file that is damaged, no NIfTI-1, or too large for the memory.
    """
    path = Path(path)
    try:
        with gzip.open(path) if path.name.lower().endswith(".gz") else open(path, "rb") as file:
            header = file.read(HEADER)
            shape, kind, start, slope, offset = _header(header, path)
            size = math.prod(shape) * kind.itemsize
            memory.check(math.prod(shape) * 4 + size, f"'{path}' {shape}", "leave it out")
            file.read(start - HEADER)
            content = file.read(size)
            file.read(1)  # the checksum of gzip lies behind the last byte
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"cannot read the volume '{path}' ({error})") from None
    if len(content) != size:
        raise InputError(f"'{path}' should hold {size:,} bytes of values, it has {len(content):,}")
    volume = np.frombuffer(content, kind).reshape(shape, order="F").astype(np.float32)
    return volume * np.float32(slope) + np.float32(offset) if slope else volume


def central_slice(path: str | Path) -> Image.Image:
    """Read the slice in the middle of the third axis as a grey image, X downwards.

    The values are scaled so that the smallest becomes 0 and the largest 255.

    Raises: InputError, as `read_volume` does.
    """
    volume = read_volume(path)
    plane = np.nan_to_num(volume[:, :, volume.shape[2] // 2])
    low, high = float(plane.min()), float(plane.max())
    scaled = (plane - low) * (255 / (high - low) if high > low else 0)
    return Image.fromarray(scaled.astype(np.uint8))


def _header(header: bytes, path: Path):
    """Parse (shape, type, where the values start, scale, offset) of a header."""
    order = next((o for o in "<>" if header[:4] == struct.pack(f"{o}i", HEADER)), None)
    if len(header) < HEADER or order is None or header[344:347] not in (b"n+1", b"ni1"):
        raise InputError(f"'{path}' is no NIfTI-1 file")
    if header[344:347] == b"ni1":
        raise InputError(f"'{path}' keeps its values in another file; save it as one .nii file")
    rank, *sides = struct.unpack(f"{order}8h", header[40:56])
    code = struct.unpack(f"{order}h", header[70:72])[0]
    start, slope, offset = struct.unpack(f"{order}3f", header[108:120])
    shape = tuple(side if axis < rank else 1 for axis, side in enumerate(sides[:3]))
    known = 1 <= rank <= 7 and min(shape) > 0 and code in TYPES
    if not known or not HEADER <= start <= LONGEST_HEADER:
        raise InputError(
            f"'{path}' holds {rank} axes {shape} of the type {code}; it cannot be read"
        )
    return shape, np.dtype(order + TYPES[code]), int(start), slope, offset
