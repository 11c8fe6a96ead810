"""Obtain the file of published weights: find or fetch it, verify it, say what a person has to do.

The rows are those of `models.weights`. They arrive as arguments, because nothing here imports that
package. Files lie under a root of their own, with the same records as data sets (see `archives`).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from ood.cli import progress
from ood.config import InputError
from ood.data.fetch import archives
from ood.data.fetch.archives import ObtainError
from ood.data.fetch.connection import Patience
from ood.data.fetch.unpack import unpack
from ood.data.registry.entry import Archive

LARGEST = 2**32  # bytes of a weight file whose size nobody says
PATIENCE = Patience(unannounced=LARGEST)
COLUMNS = ["name", "trained on", "accuracy", "checksum", "licence", "state"]
READING = """\
Accuracies are the publishers', in per cent.
Checksum 'first use': none is published, so that of the first download is enforced from then on."""


def obtain(
    row,
    root: Path,
    *,
    file=None,
    place: str | None = None,
    download: bool = True,
    patience: Patience = PATIENCE,
    log: Callable[[str], None] = lambda line: None,
) -> Path:
    """Return the verified file of published weights, and fetch it where it is missing.

    Args:
        row: of `models.weights.TABLE`.
        root: folder of all published files.
        file: another file of the row, such as its feature mean; default: the weights.
        place: where it lies below the root; default: what the row says.
        download: fetch it if it is not there.
        patience: how long to try; see `connection.Patience`.
        log: gets one line for each step and each failed attempt.

    Returns: the file. For weights that come in an archive, what the row names inside it.

    Raises:
        InputError: it is not there, and may not be fetched, or only a person can get it.
        DownloadError, UnpackError, ObtainError: the download failed, or the file is another one.
    """
    file = file or row.file
    archive = _archive(row, file, place)
    target = root / archive.place
    if not archives.is_there(target):
        _bring(row, archive, root, download, patience, log)
    elif not archive.unpack:
        archives.verify(archive, root)
    return _inside(target, file, row) if archive.unpack else target


def listing(rows: Iterable, root: Path) -> str:
    """Return a table of published weights, one line each, and how to use them."""
    lines = [COLUMNS, *(_cells(row, root) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    table = ("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
    return "\n".join([*table, "", f"Files lie in '{root}'.", READING])


def _archive(row, file, place: str | None) -> Archive:
    """Describe a file of a row as `archives` takes it."""
    return Archive(
        file.urls,
        place or row.place(file),
        md5=file.md5,
        sha256=file.sha256,
        bytes=file.bytes,
        unpack=bool(file.folder),
        drive=file.drive,
        file=file.name,
    )


def _bring(row, archive: Archive, root: Path, download: bool, patience: Patience, log) -> None:
    """Put a file in place: what a person has placed, or a download. Raises as `obtain`."""
    place = root / archive.place
    # Many files are called model.pt: without a checksum, only an archive is known by its name.
    placed = root.is_dir() and (archive.sha256 or archive.md5 or archive.unpack)
    there = archives.find_placed(archive, root) if placed else None
    if there is None and archive.by_hand:
        steps = row.steps.format(place=place)
        raise InputError(
            f"'{row.name}' is not here, and has to be fetched by hand from {row.source}: {steps}"
        )
    if there is None and not download:
        raise InputError(
            f"'{row.name}': '{place}' is not there; allow its download, or get it from {row.source}"
        )
    root.mkdir(parents=True, exist_ok=True)
    with archives.alone(root, log):
        if archives.is_there(place):  # another process was faster
            return
        work = archives.work_folder(archive, root)
        if there is None:
            log(f"{row.name}: fetching {archive.name} from {archive.mirrors[0]}")
            there = archives.download(archive, work, root, patience, log)
        staged = there
        if archive.unpack:
            staged = work / "unpacked"
            shutil.rmtree(staged, ignore_errors=True)  # of a run that was killed
            unpack(there, staged, progress=partial(progress, label=f"unpack {archive.name}"))
        elif there.parent != work:
            work.mkdir(parents=True, exist_ok=True)
            staged = work / archive.name
            shutil.copyfile(there, staged)
        archives.move(staged, place)
        shutil.rmtree(work, ignore_errors=True)
        log(f"{row.name}: {place}")


def _inside(folder: Path, file, row) -> Path:
    """Find what the row names in an unpacked archive, wherever its path begins."""
    found = sorted(folder.glob(f"**/{file.inside}"))
    if found:
        return found[0]
    held = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing"
    raise ObtainError(
        f"'{row.name}': '{folder}' holds no '{file.inside}', but {held}; "
        "remove the folder to fetch it again"
    )


def _cells(row, root: Path) -> list[str]:
    accuracy = row.accuracy.get("final") or next(iter(row.accuracy.values()), None)
    file = row.file
    known = "sha256" if file.sha256 else "md5" if file.md5 else "first use"
    if file.sha256 and len(file.sha256) < 64:
        known = f"sha256 {file.sha256}..."
    if archives.is_there(root / row.place()):
        state = "there"
    else:
        state = "by hand" if file.by_hand else "to fetch"
    shown = "" if accuracy is None else f"{100 * accuracy:.2f}"
    return [row.name, row.dataset, shown, known, row.licence, state]
