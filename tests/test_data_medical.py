"""Volumes of medical imaging, and the sets of OpenMIBOOD."""

from __future__ import annotations

import gzip
import struct

import numpy as np
import pytest
from download_toys import Server
from PIL import Image

from ood.config import InputError
from ood.data import info, load
from ood.data.fetch import obtain
from ood.data.registry import openmibood, table
from ood.data.volumes import central_slice, read_volume

CODES = {"u1": 2, "i2": 4, "i4": 8, "f4": 16, "f8": 64, "i1": 256, "u2": 512}


def nifti(array, kind="i2", order="<", slope=0.0, offset=0.0, start=352, rank=None) -> bytes:
    """Write the bytes of a NIfTI-1 file."""
    header = bytearray(start)
    header[:4] = struct.pack(f"{order}i", 348)
    sides = [array.ndim if rank is None else rank, *array.shape, *[1] * (7 - array.ndim)]
    header[40:56] = struct.pack(f"{order}8h", *sides)
    header[70:72] = struct.pack(f"{order}h", CODES[kind])
    header[108:120] = struct.pack(f"{order}3f", start, slope, offset)
    header[344:348] = b"n+1\0"
    return bytes(header) + array.astype(order + kind).tobytes(order="F")


@pytest.fixture
def volume():
    return np.random.default_rng(0).integers(-50, 100, (4, 5, 3))


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", CODES)
def test_every_type_is_read(kind, order, volume, tmp_path):
    expected = volume.astype(kind).astype(np.float32)
    (tmp_path / "v.nii").write_bytes(nifti(volume.astype(kind), kind, order))
    (tmp_path / "v.nii.gz").write_bytes(gzip.compress(nifti(volume.astype(kind), kind, order)))
    for name in ("v.nii", "v.nii.gz"):
        read = read_volume(tmp_path / name)
        assert read.dtype == np.float32 and np.array_equal(read, expected)


def test_scale_and_series(volume, tmp_path):
    file = tmp_path / "v.nii"
    file.write_bytes(nifti(volume, slope=0.5, offset=3))
    assert np.allclose(read_volume(file), volume * 0.5 + 3)
    series = np.stack([volume, volume + 1], axis=3)
    file.write_bytes(nifti(series, start=400))
    assert np.array_equal(read_volume(file), volume)
    file.write_bytes(nifti(volume[:, :, 0]))
    assert np.array_equal(read_volume(file), volume[:, :, :1])


def test_the_central_slice_is_an_image(volume, tmp_path):
    (tmp_path / "v.nii").write_bytes(nifti(volume))
    image = np.asarray(central_slice(tmp_path / "v.nii"))
    plane = volume[:, :, 1]
    assert image.dtype == np.uint8 and image.min() == 0 and image.max() == 255
    assert np.array_equal(image, ((plane - plane.min()) * (255 / np.ptp(plane))).astype(np.uint8))
    (tmp_path / "flat.nii").write_bytes(nifti(np.full((2, 2, 2), 7)))
    assert not np.asarray(central_slice(tmp_path / "flat.nii")).any()


def test_damaged_volumes_are_refused(volume, tmp_path):
    whole = nifti(volume)
    for name, content, words in (
        ("cut.nii", whole[:-1], "should hold 120 bytes of values, it has 119"),
        ("none.nii", b"nothing", "is no NIfTI-1 file"),
        ("cut.nii.gz", gzip.compress(whole)[:-9], "cannot read the volume"),
        ("no.nii.gz", whole, "cannot read the volume"),
        ("pair.nii", whole[:344] + b"ni1\0" + whole[348:], "in another file"),
        ("type.nii", whole[:70] + b"\1\0" + whole[72:], "of the type 1"),
        ("rank.nii", nifti(volume, rank=9), "holds 9 axes"),
        ("side.nii", whole[:42] + b"\xff\xff" + whole[44:], "cannot be read"),
        ("start.nii", whole[:108] + struct.pack("<f", np.inf) + whole[112:], "cannot be read"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=f"{name}.*{words}|{words}.*{name}"):
            read_volume(tmp_path / name)
    (tmp_path / "large.nii").write_bytes(whole[:42] + struct.pack("<3h", *[30000] * 3) + whole[48:])
    with pytest.raises(InputError, match="of memory"):
        read_volume(tmp_path / "large.nii")


# --- OpenMIBOOD


def write_set(root, benchmark: str, file: str, split: str, count: int, label: int) -> None:
    """Write a list with its images, in the real layout."""
    row = info(benchmark)
    folder, lines = root / row.options["root"], []
    for number in range(count):
        ending = ".nii.gz" if benchmark == "oasis3" else ".png"
        path = folder / file / f"{split}_{number}{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3))
        if benchmark == "oasis3":
            path.write_bytes(gzip.compress(nifti(pixels)))
        else:
            Image.fromarray(pixels.astype(np.uint8)).save(path)
        lines.append(f"{path.relative_to(folder).as_posix()} {label}\n")
    place = root / "imglists" / benchmark / f"{split}_{file}.txt"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("".join(lines))


@pytest.mark.parametrize("benchmark", openmibood.BENCHMARKS)
def test_every_set_is_read(benchmark, tmp_path):
    _, classes, sets, _ = openmibood.BENCHMARKS[benchmark]
    write_set(tmp_path, benchmark, benchmark, "train", 3, classes - 1)
    images = load(benchmark, "train", tmp_path, size=4)
    assert (images.labels == classes - 1).all() and images.num_classes == classes
    for split, stored in (("val", "valid"), ("test", "test")):
        for name, file, labelled in sets:
            write_set(tmp_path, benchmark, file, stored, 2, 1 if labelled else -1)
            images = load(name, split, tmp_path, size=4)
            assert len(images) == 2 and (images.labels == (1 if labelled else -1)).all()
    channels = 1 if benchmark == "oasis3" else 3
    assert images.read([0]).shape == (1, channels, 4, 4)


def test_names_and_lists_are_those_of_pytorch_ood():
    from pytorch_ood.benchmark.img import openmibood as theirs

    for name, kind in (
        ("midog", theirs.MIDOG_OpenMIBOOD),
        ("phakir", theirs.PhaKIR_OpenMIBOOD),
        ("oasis3", theirs.OASIS3_OpenMIBOOD),
    ):
        sets = openmibood.BENCHMARKS[name][2]
        assert [
            row[0] for row in sets
        ] == kind.cs_id_names + kind.near_ood_names + kind.far_ood_names
        assert [f"test_{row[1]}.txt" for row in sets] == kind._ood_imglists
        assert [row[0] for row in sets if row[2]] == kind.cs_id_names
        lists = [archive.name for archive in info(f"openmibood_{name}").archives]
        assert {kind._train_imglist, kind._test_imglist, *kind._ood_imglists} <= set(lists)
        url = f"{theirs._IMGLIST_BASE}/{name}/{kind._train_imglist}"
        assert info(f"openmibood_{name}").archives[0].urls[0] == url


def test_lists_are_fetched_and_the_rest_is_told(tmp_path, monkeypatch):
    """The lists come from their server; what only a person can get is named in the error."""
    import dataclasses

    server = Server()
    try:
        row = info("openmibood_oasis3")
        archives = []
        for archive in row.archives:
            server.files[f"/{archive.name}"] = b"far/missing.nii.gz 0\n"
            urls = (f"{server.address}/{archive.name}",)
            archives.append(dataclasses.replace(archive, urls=urls))
        little = dataclasses.replace(row, archives=tuple(archives))
        monkeypatch.setitem(table.TABLE, row.name, little)
        with pytest.raises(InputError, match="download_data.py oasis3 -dry_run") as caught:
            load("oasis3", "test", tmp_path, download=True)
        assert "far/missing.nii.gz" in str(caught.value)
        lists = sorted(path.name for path in (tmp_path / "imglists/oasis3").iterdir())
        assert lists == sorted(archive.name for archive in archives)
        steps = "\n".join(obtain.describe(info("oasis3"), tmp_path))
        assert "https://sites.wustl.edu/oasisbrains/home/access/" in steps and "hd-bet" in steps
    finally:
        server.close()
