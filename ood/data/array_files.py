"""Arrays of images in .npy and .npz files, of known sets or of your own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from ood.config import InputError
from ood.data.images import ImageSet
from ood.data.request import Request, from_arrays

LARGEST_LABEL = 65_535


def read_array(path: Path) -> np.ndarray:
    """Read images as uint8 (N, H, W[, 3]); of an .npz `images`, `x` or its only array."""
    return _as_images(open_array(path, ("images", "x", "arr_0", "data")), path)


def _as_images(array: np.ndarray, path: Path) -> np.ndarray:
    """Bring an array to (N, H, W) or (N, H, W, 3). Raises InputError where it holds no images."""
    if array.ndim == 4 and array.shape[1] in (1, 3) and array.shape[3] not in (1, 3):
        array = array.transpose(0, 2, 3, 1)
    if array.ndim == 4 and array.shape[3] == 1:
        array = array[..., 0]
    shape_fits = array.ndim in (3, 4) and array.shape[3:] in ((), (3,))
    if array.dtype != np.uint8 or not shape_fits or not len(array):
        raise InputError(
            f"'{path}' holds {array.dtype} {array.shape}; "
            "images are uint8 (N, H, W), (N, H, W, C) or (N, C, H, W)"
        )
    return array


def open_array(path: Path, keys: tuple[str, ...]) -> np.ndarray:
    """Open an .npy file, memory-mapped, or read one array of an .npz. Nothing is unpickled.

    Args:
        keys: of an .npz, the first of these names that is there, else the only array.
    Raises: InputError for a file that is missing, damaged, or without such an array.
    """
    try:
        content = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(content, np.ndarray):
            return content
        with content:
            key = next((key for key in keys if key in content.files), None)
            if key is None and len(content.files) == 1:
                key = content.files[0]
            if key is None:
                raise InputError(
                    f"'{path}' holds {', '.join(content.files) or 'nothing'}; "
                    f"expected one of {', '.join(keys)}"
                )
            return content[key]
    except FileNotFoundError:
        raise InputError(f"no file '{path}'") from None
    except InputError:
        raise
    except Exception as error:  # NumPy and zipfile raise many kinds on damaged files
        raise _no_array(path, error) from None


def read_own_array(request: Request, path: Path) -> ImageSet:
    """Read your own .npy (images) or .npz.

    An .npz holds `images` [and `labels`], or `x_train`, `y_train`, `x_test`, `y_test`.
    """
    images, labels, split = None, None, "all"
    if path.suffix.lower() == ".npz" and path.is_file():
        with _opened(path) as content:
            if f"x_{request.split}" in content.files:
                split = request.split
                images = _as_images(content[f"x_{split}"], path)
            names = ("labels", "y", "targets") if split == "all" else (f"y_{split}",)
            key = next((name for name in names if name in content.files), None)
            labels = None if key is None else content[key]
    images = read_array(path) if images is None else images
    labels, classes = _own_labels(labels, len(images), path)
    row = replace(request.row, name=path.stem)
    if classes is not None:
        row = replace(row, num_classes=len(classes), class_names=classes)
    made = from_arrays(
        replace(request, row=row),
        path.parent,
        [path.name],
        lambda: (images, None),
        labelled=False,
        truth=labels,
    )
    if isinstance(made, ImageSet):
        made.split = split
    return made


def _own_labels(
    labels: np.ndarray | None, count: int, path: Path
) -> tuple[np.ndarray | None, tuple[str, ...] | None]:
    """Check labels of a file of your own: (labels, names of the classes), None for unlabelled."""
    if labels is None:
        return None, None
    labels = np.asarray(labels).reshape(-1)
    whole = labels.dtype.kind in "iu" and labels.max(initial=0) <= LARGEST_LABEL
    if len(labels) != count or not whole:
        raise InputError(
            f"'{path}' holds {count} images and {len(labels)} labels of type {labels.dtype}; "
            "expected one whole number per image"
        )
    if labels.max(initial=-1) < 0:
        return None, None
    labels = labels.astype(np.int64)
    if labels.min() < 0:
        raise InputError(
            f"'{path}' mixes classes with negative labels; "
            "put the outliers into a file of their own"
        )
    return labels, tuple(map(str, range(int(labels.max()) + 1)))


def read_arrays(request: Request) -> ImageSet:
    """Read arrays in the files that `options['files']` names.

    The option is {split: (images, labels or None)}; '{part}' in a name stands for every part of
    the set, or for the one asked for.
    """
    row, options = request.row, request.row.options
    images_file, labels_file = options["files"][request.split]
    parts = [options["part"]] if options.get("part") else list(options.get("parts", ("",)))
    files = [images_file.format(part=part) for part in parts]
    names = [labels_file.format(part=part) for part in parts] if labels_file else []
    folder = next((place for place in request.places if (place / files[0]).is_file()), None)
    if folder is None:
        raise request.missing(*(place / files[0] for place in request.places))
    for file in (*files, *names):
        if not (folder / file).is_file():
            raise request.damaged(f"'{folder / file}' is not there")

    def produce():
        arrays = [_severity(read_array(folder / file), options) for file in files]
        labels = [_labels(folder / name, options) for name in names]
        for array, label, file in zip(arrays, labels, files):
            low, high = label.min(initial=0), label.max(initial=0)
            if len(array) != len(label) or low < 0 or high >= row.num_classes:
                raise InputError(
                    f"'{folder / file}' has {len(array)} images, "
                    f"its labels are {len(label)} numbers up to {label.max(initial=-1)}; "
                    f"expected one below {row.num_classes} each"
                )
        images = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        return images, np.concatenate(labels).astype(np.uint8) if labels else None

    sources = list(dict.fromkeys(files + names))
    return from_arrays(request, folder, sources, produce, labelled=bool(names))


def _labels(path: Path, options: dict) -> np.ndarray:
    return _severity(open_array(path, ("labels", "y", "arr_0")), options).reshape(-1)


def _severity(array: np.ndarray, options: dict) -> np.ndarray:
    """Cut out the rows of one severity, which lie one after the other; all rows where none is."""
    severity, severities = options.get("severity"), options.get("severities", 1)
    if severity is None:
        return array
    step = len(array) // severities
    return array[(severity - 1) * step : severity * step]


def _opened(path: Path):
    try:
        return np.load(path, allow_pickle=False)
    except Exception as error:
        raise _no_array(path, error) from None


def _no_array(path: Path, error: Exception) -> InputError:
    why = (str(error).splitlines() or [type(error).__name__])[0]
    return InputError(f"'{path}' is no array of images ({why})")
