"""`load(download=True)` for every row of the table with something to fetch, and its messages."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import pickle
import shutil
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ood.config import InputError
from ood.data import auxiliary, info, load, texts
from ood.data.fetch import archives
from ood.data.fetch.download import DownloadError
from ood.data.registry import table

SIDE = 4
FETCHED = [
    row.name
    for row in table.TABLE.values()
    if (row.archives or row.needs) and row.reader != "parts"  # no images
]
ONLY = {"fooling": "run_0/map_gen_5000/{}.png", "imagenet_es_whole": "dark/l1/c1/n01440764/{}.png"}
NEEDS_A_PERSON = {
    "imagenet": "register at https://www.image-net.org",
    "imagenet200": "register at https://www.image-net.org",
    "imagenet1k_openood": "register at https://www.image-net.org",
    **{
        name: rf"download_data.py {name} -dry_run -data_dir \S+ lists what you have to do yourself"
        for name in FETCHED
        if name.startswith(("ssb_cars", "fishyscapes", "midog", "phakir", "oasis3"))
        and "lost" not in name
        and name not in ("phakir_cholec", "phakir_kvasir", "phakir_cataracts", "oasis3_heart")
    },
}


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (SIDE, SIDE), (9, 9, 9)).save(path)


# --- what the publishers have, in little: every reader's layout below `root`


def publish_folder(root, row):
    for split, subs in row.splits.items():
        folder = root / row.folders[0].replace("{split}", subs[0])
        for archive in row.archives:  # places365: the archive is a folder inside
            if archive.place.startswith(f"{row.folders[0]}/"):
                folder = root / archive.place
        names = [str(label) for label in range(row.num_classes or 1)]
        for name in names if row.role == "id" else [f"{split}-images"]:
            for number in range(3):
                picture(folder / ONLY.get(row.name, f"{name}/{{}}.jpg").format(number))
    if row.name == "lostandfound":  # the image that has a mask, see publish_lostandfound
        place = root / row.archives[0].place / "train" / "04_Place"
        picture(place / "04_Place_000000_000010_leftImg8bit.png")


def publish_direct(root, row):
    picture(root / row.folders[0] / "0.jpg")


def publish_tiny_imagenet(root, row):
    folder = root / row.folders[0]
    for wnid in ("n01", "n02"):
        picture(folder / "train" / wnid / "images" / f"{wnid}_0.JPEG")
        picture(folder / "val" / "images" / f"val_{wnid}.JPEG")
    lines = (f"val_{wnid}.JPEG\t{wnid}\t0\t0\t3\t3\n" for wnid in ("n01", "n02"))
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))


def publish_cifar(root, row):
    folder = root / row.options["pickles"]
    folder.mkdir(parents=True)
    pixels = np.zeros((2, 3072), dtype=np.uint8)
    for file in ("data_batch", "test_batch"):
        content = {"data": pixels, "labels": [0, 1], "fine_labels": [0, 1]}
        (folder / file).write_bytes(pickle.dumps(content))
    names = {"label_names": ["a", "b"], "fine_label_names": ["a", "b"]}
    (folder / "meta").write_bytes(pickle.dumps(names))


def publish_idx(root, row):
    for prefix in ("train", "t10k"):
        for what, array in (("images", np.zeros((2, 28, 28), np.uint8)), ("labels", np.arange(2))):
            head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
            file = root / row.folders[0] / f"{prefix}-{what}-idx{array.ndim}-ubyte.gz"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(gzip.compress(head + array.astype(np.uint8).tobytes()))


def publish_svhn(root, row):
    from scipy.io import savemat

    for split in ("train", "test"):
        file = root / "ood_datasets/svhn" / f"{split}_32x32.mat"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.zeros((32, 32, 3, 2), np.uint8)
        savemat(file, {"X": pixels, "y": np.array([[10], [1]], dtype=np.uint8)})


def publish_lists(root, row):
    lists = row.options["lists"] or {"test": "cifar10/test_tin.txt"}  # openood_lists itself
    for split, file in lists.items():
        path = root / "benchmark_imglist" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        folder, label = f"{Path(row.folders[0]).name}/{split}", 0 if row.role == "id" else -1
        path.write_text("".join(f"{folder}/{number}.png {label}\n" for number in range(2)))
        if row.archives and row.options["lists"]:
            for number in range(2):
                picture(root / row.options["root"] / folder / f"{number}.png")


def publish_parts(root, row):
    """Write the lists of OpenMIBOOD; the publishers of its sets write the images."""
    for archive in row.archives:
        path = root / archive.place
        path.parent.mkdir(parents=True, exist_ok=True)
        if archive.unpack:
            picture(path / "0.png")
        else:
            inside = [
                other
                for other in table.TABLE.values()
                if other.archives and path.name in str(other.options.get("lists"))
            ]
            name = inside[0].archives[0].place.partition("/")[2] if inside else "none"
            path.write_text(f"{name}/0.png -1\n")


def publish_arrays(root, row):
    images = np.zeros((10, SIDE, SIDE, 3)[: 3 + (row.channels == 3)], np.uint8)
    for part in row.options.get("parts", ("",)):
        for images_file, labels_file in row.options["files"].values():
            for file, array in ((images_file, images), (labels_file, np.zeros(10, np.uint8))):
                if file is not None:
                    path = root / row.folders[0] / file.format(part=part)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    np.savez(path, array) if path.suffix == ".npz" else np.save(path, array)


def publish_corrupted(root, row):
    for kind in row.options["parts"]:
        for severity in range(1, row.options["severities"] + 1):
            for wnid in ("n01", "n02"):
                picture(root / row.folders[0] / kind / str(severity) / wnid / "0.JPEG")


def publish_mvtec(root, row):
    for name in table.TABLE["mvtec"].class_names:
        for kind in ("train/good", "test/good", "test/broken"):
            picture(root / row.folders[0] / name / kind / "0.png")


def publish_sumnist(root, row):
    for split in ("train", "test"):
        for letter, array in (
            ("x", np.zeros((2, SIDE, SIDE), np.uint8)),
            ("y", np.array([[5, 5, 5, 5], [0, 0, 0, 0]])),
            ("b", np.zeros(2)),
        ):
            path = root / "sumnist" / f"{letter}-{split}.npz"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(path, array)


def publish_fishyscapes(root, row):
    (root / row.folders[0]).mkdir(parents=True)
    overlay = np.zeros((SIDE, SIDE, 3), np.int32)
    np.savez(root / row.folders[0] / "0000_ulm_1_rgb.npz", rgb=overlay)


def publish_lostandfound(root, row):
    stem = "04_Place_000000_000010"
    picture(root / "fishyscapes_lostandfound" / f"0000_{stem}_labels.png")


def publish_fine_grained(root, row):
    cub, aircraft = root / "CUB_200_2011", root / "fgvc-aircraft-2013b" / "data"
    unknown = {"Easy": [1], "Medium": [2], "Hard": []}
    for short in ("cub", "aircraft", "scars"):
        path = root / "ssb_splits" / f"{short}_osr_splits.pkl"
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(pickle.dumps({"known_classes": [0], "unknown_classes": unknown}))
    for number in range(6):
        picture(cub / "images" / f"{number}.jpg")
        picture(aircraft / "images" / f"{number}.jpg")
    for file, of in (
        ("images.txt", lambda n: f"{n}.jpg"),
        ("image_class_labels.txt", lambda n: n % 3 + 1),
        ("train_test_split.txt", lambda n: n // 3),
    ):
        (cub / file).write_text("".join(f"{number} {of(number)}\n" for number in range(6)))
    (aircraft / "variants.txt").write_text("A\nB\nC\n")
    for part, numbers in (("trainval", (0, 1, 2)), ("test", (3, 4, 5))):
        lines = (f"{number} {'ABC'[number % 3]}\n" for number in numbers)
        (aircraft / f"images_variant_{part}.txt").write_text("".join(lines))


def publish_texts(root, row):
    for split, file in row.options["files"].items():
        path = root / row.folders[0] / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"0 first text\n1 second text of {split}\n")


PUBLISH = {
    "texts": publish_texts,
    "folder": publish_folder,
    "direct": publish_direct,
    "tiny_imagenet": publish_tiny_imagenet,
    "cifar": publish_cifar,
    "idx": publish_idx,
    "svhn": publish_svhn,
    "svhn_selected": publish_svhn,
    "imglist": publish_lists,
    "arrays": publish_arrays,
    "corrupted": publish_corrupted,
    "mvtec": publish_mvtec,
    "sumnist": publish_sumnist,
    "fishyscapes": publish_fishyscapes,
    "lostandfound": publish_lostandfound,
    "fine_grained": publish_fine_grained,
    "parts": publish_parts,
}


def pack(archive, source: Path, file: Path) -> None:
    """Write the archive of one row: a file as it is, or a packed folder."""
    if not archive.unpack:
        shutil.copyfile(source, file)
        return
    if not source.exists():  # not needed for images (masks of lostandfound)
        picture(source / "0.png")
    inside = Path(archive.inside or ".")
    if file.suffix == ".zip":
        with zipfile.ZipFile(file, "w") as packed:
            for path in source.rglob("*"):
                packed.write(path, inside / path.relative_to(source))
    else:
        with tarfile.open(file, "w") as packed:
            packed.add(source, inside)


@pytest.fixture
def publishers(tmp_path, monkeypatch):
    """Little sets in place of the published ones; `archives.fetch` gets their archives from here.

    The dict that it gives is {file: times fetched}.
    """
    from torchvision import datasets

    fetched, published = {}, {}
    root = tmp_path / "published"
    for name, row in list(table.TABLE.items()):
        classes = 15 if row.reader == "mvtec" else 1 if row.reader == "sumnist" else 2
        little = dataclasses.replace(
            row,
            count={},
            num_classes=row.num_classes and classes,
            class_names=row.class_names if row.reader == "mvtec" else None,
            archives=tuple(
                dataclasses.replace(archive, choose=archive.choose and 2)
                for archive in row.archives
            ),
        )
        monkeypatch.setitem(table.TABLE, name, little)
        for archive in little.archives:
            published.setdefault(archive.mirrors, []).append((little, archive))
    for kind in (datasets.CIFAR10, datasets.CIFAR100):
        for lists, file in (("train_list", "data_batch"), ("test_list", "test_batch")):
            monkeypatch.setattr(kind, lists, [[file, None]])
        monkeypatch.setattr(kind, "meta", {**kind.meta, "filename": "meta", "md5": None})

    def fetch(urls, path, **_):
        archive = published[tuple(urls)][0][1]
        source = root / archive.name
        if not source.exists():
            for row, _ in published[tuple(urls)]:  # an archive may serve several sets
                PUBLISH[row.reader](source / row.name, row)
                shutil.copytree(source / row.name, source, dirs_exist_ok=True)
            if archive.name == "benchmark_imglist.zip":
                for other in table.TABLE.values():
                    if "openood_lists" in other.needs:
                        publish_lists(source, dataclasses.replace(other, archives=()))
        path.parent.mkdir(parents=True, exist_ok=True)
        pack(archive, source / archive.place, path)
        fetched[archive.name] = fetched.get(archive.name, 0) + 1
        return hashlib.sha256(path.read_bytes()).hexdigest()

    monkeypatch.setattr(archives, "fetch", fetch)
    return fetched


@pytest.mark.parametrize("name", FETCHED)
def test_download_works_for_every_set(name, publishers, tmp_path):
    """Every split of every set is fetched when it is missing, and then read from what is there.

    Where a person has to fetch a part, the error says so, and never advises -download.
    """
    for split in info(name).splits:
        root = tmp_path / split
        if name in NEEDS_A_PERSON:
            with pytest.raises(InputError, match=NEEDS_A_PERSON[name]) as caught:
                load(name, split, root, size=SIDE, download=True)
            assert "add -download" not in str(caught.value) and "\n" not in str(caught.value)
            continue
        lists = ("cifar10/test_tin.txt",) if name == "openood_lists" else None
        if lists:
            load("tin_openood", split, root, size=SIDE, download=True)
        if info(name).reader == "texts":
            assert len(texts.load(name, split, root, download=True)) == 2
            assert len(texts.load(name, split, root)) == 2
            continue
        images = load(name, split, root, size=SIDE, download=True, lists=lists)
        assert len(images) > 0 and images.read([0]).shape[-1] == SIDE
        times = dict(publishers)
        again = load(name, split, root, size=SIDE, download=True, lists=lists)
        assert again.digest == images.digest and publishers == times
        assert load(name, split, root, size=SIDE, lists=lists).digest == images.digest


def test_a_part_of_a_set_is_fetched_by_its_name(publishers, tmp_path):
    for name in ("cifar10c:fog:5", "imagenet_c_noise:shot_noise:3"):
        assert len(load(name, "test", tmp_path, size=SIDE, download=True)) == 2


def test_a_set_made_from_another_fetches_that(publishers, tmp_path):
    images = load("mnist_noise", "test", tmp_path, download=True)
    assert len(images) == 2 and "t10k-images-idx3-ubyte.gz" in publishers


def test_auxiliary_outliers_are_fetched(publishers, tmp_path):
    drawn = auxiliary.draw("tinyimages300k", 5, 0, tmp_path, size=8, channels=3, download=True)
    assert len(drawn) == 5 and publishers == {"300K_random_images.npy": 1}
    with pytest.raises(InputError, match="300K_random_images.npy.*add -download"):
        auxiliary.draw("tinyimages300k", 5, 0, tmp_path / "x", size=8, channels=3)


def test_what_a_person_placed_is_enough(publishers, tmp_path):
    """ImageNet's validation images are there; the lists are all that is fetched for imagenet200."""
    folder = tmp_path / "ILSVRC-2012" / "val" / "n01"
    picture(folder / "ILSVRC2012_val_00000001.JPEG")
    lists = tmp_path / "published/benchmark_imglist.zip/benchmark_imglist/imagenet200"
    load("tin_openood", "test", tmp_path / "other", size=SIDE, download=True)  # publishes the lists
    image = "imagenet_1k/val/ILSVRC2012_val_00000001.JPEG"
    (lists / "test_imagenet200.txt").write_text(f"{image} 1\n")
    assert load("imagenet200", "test", tmp_path, size=SIDE, download=True).labels.tolist() == [1]


def test_damaged_files_are_fetched_again(publishers, tmp_path):
    def mangle(path):
        path.write_bytes(b"no such thing")

    for name, file, damage in (
        ("mnist", "MNIST/raw/t10k-labels-idx1-ubyte.gz", mangle),
        ("svhn", "ood_datasets/svhn/test_32x32.mat", mangle),
        ("cifar10", "cifar-10-batches-py/test_batch", mangle),
        ("cifar10_unknown", "cifar-10-batches-py/test_batch", Path.unlink),
        ("cifar10c", "CIFAR-10-C/fog.npy", Path.unlink),
        ("tin_openood", "images_classic/tin/test/1.png", Path.unlink),
        ("imagenet_c_blur", "ImageNetC/blur/zoom_blur", shutil.rmtree),
    ):
        whole = load(name, "test", tmp_path, size=SIDE, download=True)
        damage(tmp_path / file)
        with pytest.raises(InputError, match=r"add -download|add -download to fetch it again"):
            load(name, "test", tmp_path, size=SIDE)
        again = load(name, "test", tmp_path, size=SIDE, download=True)
        assert np.array_equal(again.read(slice(None)), whole.read(slice(None)))
    assert publishers["t10k-labels-idx1-ubyte.gz"] == 2
    assert "train_32x32.mat" not in publishers  # the test split does not need it


def test_an_empty_folder_is_filled(publishers, tmp_path):
    (tmp_path / "ood_datasets" / "iSUN" / "nothing").mkdir(parents=True)
    assert len(load("iSUN", "test", tmp_path, size=SIDE, download=True)) > 0


def test_a_failed_download_says_what_was_tried(publishers, tmp_path, monkeypatch):
    def refused(urls, path, **_):
        raise DownloadError(f"could not download '{path.name}' ({urls[0]}: connection refused)")

    monkeypatch.setattr(archives, "fetch", refused)
    words = "could not download 'tinyimagenet' into '.*tiny-imagenet-200.zip.*connection refused"
    with pytest.raises(InputError, match=words) as caught:
        load("tinyimagenet32", "train", tmp_path, download=True)
    assert "add -download" not in str(caught.value)
    with pytest.raises(InputError, match="'tinyimages'.*cannot fetch all of it.*withdrawn"):
        load("tinyimages", "train", tmp_path, download=True)


def test_a_list_that_is_not_published(publishers, tmp_path):
    load("tin_openood", "test", tmp_path, size=SIDE, download=True)
    words = (
        r"cifar7/x.txt'.*found nothing more to fetch.*download_data.py openood_lists tin_openood"
    )
    with pytest.raises(InputError, match=words) as caught:
        load("tin_openood", "test", tmp_path, size=SIDE, download=True, lists=("cifar7/x.txt",))
    assert "add -download" not in str(caught.value)
