"""Data on disk: layouts, order, labels, the decoded cache, resizing.

Whatever can be wrong has an error of one clear line.
"""

from __future__ import annotations

import dataclasses
import gzip
import os
import signal
import struct
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as tv
from torchvision.datasets import ImageFolder

from ood.config import InputError
from ood.data import (
    ArrayImages,
    StreamedImages,
    array_cache,
    auxiliary,
    decoding,
    info,
    load,
    memory,
    names,
    request,
)
from ood.data.decoding import Recipe
from ood.data.registry import table


def write_image(path, size=(32, 32), mode="RGB", seed=0, **options):
    generator = np.random.default_rng(seed + len(str(path)))
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8)).save(path, **options)


@pytest.fixture
def photos(tmp_path):
    """Two classes of three images each, named so that string and number order differ."""
    for label, name in enumerate(("a-b", "a")):
        for number in (1, 2, 10):
            write_image(tmp_path / "photos" / name / f"{number}.png", seed=10 * label + number)
    return tmp_path / "photos"


@pytest.fixture
def private_temp(tmp_path, monkeypatch):
    """The fall-back cache folder, empty."""
    place = tmp_path / "private"
    place.mkdir()
    monkeypatch.setattr(array_cache, "_private_temp", lambda: place)
    return place


def everything(images, size=4):
    return torch.cat(list(images.batches(size)))


# --- folders


def test_order_and_labels_are_those_of_imagefolder(photos):
    write_image(photos / "a" / "nested" / "0.png")
    write_image(photos / "a" / "UPPER.JPG")
    (photos / "a" / "notes.txt").write_text("no image")
    write_image(photos / ".hidden" / "0.png")
    (photos / "empty").mkdir()
    images = load(str(photos), "test", photos.parent)
    (photos / "empty").rmdir()
    (photos / ".hidden").rename(photos.parent / "hidden")
    oracle = ImageFolder(photos)
    assert [str(photos / path) for path in images.paths] == [path for path, _ in oracle.samples]
    assert images.labels.tolist() == oracle.targets
    assert images.class_names == tuple(oracle.classes) and images.num_classes == 2
    assert np.array_equal(
        everything(images).numpy(),
        np.stack([np.asarray(image).transpose(2, 0, 1) for image, _ in oracle]),
    )


@pytest.mark.parametrize(
    "links",
    [
        {"a/loop": "a"},
        {"a/loop": "."},
        {"a/one": ".", "a/two": "."},
        {"a/one": "a-b", "a-b/two": "a", "a-b/three": "a"},
        {"loop": "."},
        {"a/up": ".."},
        {"a/self": "a/self"},
        {"a/deep/x": "a", "a/deep/y": "a", "a/deep/z": "a-b"},
    ],
)
def test_links_that_lead_back(photos, links):
    """Every image is listed once per class, and listing ends."""
    before = load(str(photos), "test", photos.parent)
    for place, target in links.items():
        (photos / place).parent.mkdir(exist_ok=True)
        (photos / place).symlink_to(photos / target, target_is_directory=True)
    images = load(str(photos), "test", photos.parent)
    assert images.class_names == before.class_names and set(before.paths) <= set(images.paths)
    real = [(label, (photos / path).resolve()) for path, label in zip(images.paths, images.labels)]
    assert len(real) == len(set(real)) <= 12


def test_links_to_folders_are_followed(photos, tmp_path):
    """Classes that lie elsewhere, two of them in one place; as in ImageFolder."""
    (photos / "a").rename(tmp_path / "elsewhere")
    for name in ("a", "b"):
        (photos / name).symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    images = load(str(photos), "test", photos.parent)
    assert [str(photos / path) for path in images.paths] == [
        path for path, _ in ImageFolder(photos).samples
    ]
    assert images.labels.tolist() == ImageFolder(photos).targets


def test_folder_with_splits(tmp_path):
    for split, count in (("train", 3), ("val", 2)):
        for name in ("cat", "dog"):
            for number in range(count):
                write_image(tmp_path / "set" / split / name / f"{number}.png")
    assert len(load(f"{tmp_path}/set", "train", tmp_path)) == 6
    test = load(f"{tmp_path}/set", "test", tmp_path)
    assert (len(test), test.split, test.name) == (4, "test", "set")
    write_image(tmp_path / "set" / "val" / "eel" / "0.png")
    with pytest.raises(InputError, match="same class folders; 'eel'"):
        load(f"{tmp_path}/set", "train", tmp_path)


def test_folder_without_splits_is_whole_and_says_so(photos):
    train, test = (
        load(str(photos), "train", photos.parent),
        load(str(photos), "test", photos.parent),
    )
    assert train.split == test.split == "all" and train.digest == test.digest and len(train) == 6


def test_class_named_train_is_a_class(tmp_path):
    for name in ("train", "bus"):
        write_image(tmp_path / "vehicles" / name / "0.png")
    assert load(f"{tmp_path}/vehicles", "test", tmp_path).class_names == ("bus", "train")


def test_split_that_is_not_there(tmp_path):
    write_image(tmp_path / "set" / "train" / "cat" / "0.png")
    with pytest.raises(InputError, match="has the sub-folder 'train' but none for test"):
        load(f"{tmp_path}/set", "test", tmp_path)


def test_flat_folder_is_unlabelled(tmp_path):
    for number in range(3):
        write_image(tmp_path / "flat" / f"{number}.png")
    images = load(f"{tmp_path}/flat", "test", tmp_path)
    assert (
        images.labels.tolist() == [-1] * 3
        and images.num_classes is None
        and images.class_names is None
    )


@pytest.mark.parametrize("layout", ["LSUN/{}.png", "LSUN/test/{}.png", "LSUN/LSUN/deeper/{}.png"])
def test_ood_folder_nested_or_not(tmp_path, layout):
    for number in (1, 2, 10):
        write_image(tmp_path / "ood_datasets" / layout.format(number))
    images = load("LSUN", "test", tmp_path, size=32)
    assert [path.split("/")[-1] for path in images.paths] == ["1.png", "10.png", "2.png"]
    assert (images.labels == -1).all() and images.num_classes is None


def test_ood_labels_are_kept_aside(tmp_path):
    for name in ("banded", "dotted"):
        write_image(tmp_path / "ood_datasets" / "dtd" / "images" / name / "0.png", size=(40, 50))
    images = load("textures", "test", tmp_path, size=32)
    assert (
        images.name == "dtd"
        and images.labels.tolist() == [-1, -1]
        and images.original_labels.tolist() == [0, 1]
    )


# --- the real sets


@pytest.mark.parametrize(
    "archive, name, split, count, classes, options",
    [
        ("isun", "iSUN", "test", 8925, None, {}),
        ("imagenet-resize", "Imagenet_resize", "test", 10_000, None, {}),
        ("dtd", "dtd", "test", 1200, None, {"size": 32}),
        ("mnist", "mnist", "test", 10_000, 10, {}),
        ("mnist", "mnist", "train", 60_000, 10, {}),
        ("omniglot", "omniglot_background", "test", 5840, None, {"size": 28}),
        ("tinyimagenet32-val", "tinyimagenet32", "test", 10_000, 200, {}),
        ("cifar10", "cifar10", "test", 10_000, 10, {"size": 32}),
    ],
)
def test_real_sets(reference_data, archive, name, split, count, classes, options):
    images = load(name, split, reference_data(archive), **options)
    facts = info(name)
    side = options.get("size", facts.size)
    assert (
        len(images) == count
        and images.num_classes == classes
        and images.shape == (facts.channels, side, side)
    )
    assert images.read([0, count - 1]).float().std() > 10
    if classes:
        counts = np.bincount(images.labels, minlength=classes)
        assert counts.min() > 0 and (name == "mnist" or set(counts) == {count // classes})


def test_real_cifar10_labels_and_times(reference_data):
    root = reference_data("cifar10")
    started = time.perf_counter()
    train = load("cifar10", "train", root, size=32)
    first = time.perf_counter() - started
    assert first < 60  # 7 s on two idle cores
    times = []
    for _ in range(3):
        started = time.perf_counter()
        again = load("cifar10", "train", root, size=32)
        times.append(time.perf_counter() - started)
    assert min(times) < 2 and again.digest == train.digest  # 0.2 s on an idle machine
    assert (
        len(train) == 50_000
        and train.class_names[train.labels[0]] == "airplane"
        and train.paths[0].startswith("airplane/")
    )
    row = train.paths.index(next(path for path in train.paths if path.startswith("truck/")))
    assert train.labels[row] == 9
    image = np.asarray(
        Image.open(root / "cifar10" / "train" / train.paths[row]).convert("RGB")
    ).transpose(2, 0, 1)
    assert np.array_equal(train.read([row])[0].numpy(), image)


def test_real_mnist_is_torchvisions(reference_data):
    from torchvision.datasets import MNIST

    root = reference_data("mnist")
    oracle, images = MNIST(root, train=False), load("mnist", "test", root)
    assert (
        np.array_equal(images.images[:, 0], oracle.data.numpy())
        and images.labels.tolist() == oracle.targets.tolist()
    )
    assert isinstance(images.images.base, np.memmap) or isinstance(
        images.images, np.memmap
    )  # nothing is copied


def test_real_omniglot_is_white_on_black(reference_data):
    images = load("omniglot_background", "test", reference_data("omniglot"), size=28)
    assert everything(images.first(200), 64).float().mean() < 80 and images.paths[0].startswith(
        "images_background_small1/"
    )


def test_real_dtd_streams_what_it_decodes(reference_data):
    root = reference_data("dtd")
    large = load("dtd", "test", root, size=112, resize=128, limit=40)
    assert isinstance(large, StreamedImages) and large.shape == (3, 112, 112)
    batches = list(large.batches(16))
    assert [len(batch) for batch in batches] == [16, 16, 8]
    crop = tv.Compose([tv.Resize(128), tv.CenterCrop(112), tv.PILToTensor()])
    oracle = torch.stack(
        [crop(Image.open(large.folder / path).convert("RGB")) for path in large.paths]
    )
    assert torch.equal(torch.cat(batches), oracle)
    assert torch.equal(torch.cat(list(large.batches(7, indices=[3, 1, 30]))), oracle[[3, 1, 30]])
    assert torch.equal(large.read(slice(4, 6)), oracle[4:6])


# --- other layouts, as stand-ins


def write_idx(folder, prefix, images, labels, packed=False):
    folder.mkdir(parents=True, exist_ok=True)
    for what, array, rank in (("images", images, 3), ("labels", labels, 1)):
        content = struct.pack(f">BBBB{rank}I", 0, 0, 8, rank, *array.shape) + array.tobytes()
        file = folder / f"{prefix}-{what}-idx{rank}-ubyte{'.gz' if packed else ''}"
        file.write_bytes(gzip.compress(content) if packed else content)


@pytest.fixture
def digits():
    generator = np.random.default_rng(3)
    return generator.integers(0, 256, (20, 28, 28), dtype=np.uint8), np.arange(
        20, dtype=np.uint8
    ) % 10


@pytest.mark.parametrize(
    "name, folder, packed",
    [
        ("mnist", "MNIST/raw", False),
        ("mnist", "MNIST/raw", True),
        ("fashionmnist", "FashionMNIST/raw", True),
    ],
)
def test_idx_files(tmp_path, digits, name, folder, packed):
    write_idx(tmp_path / folder, "t10k", *digits, packed)
    images = load(name, "test", tmp_path)
    assert (
        np.array_equal(images.images[:, 0], digits[0])
        and images.labels.tolist() == digits[1].tolist()
    )
    wide = load(name, "test", tmp_path, size=32, channels=3)
    assert wide.shape == (3, 32, 32) and wide.digest != images.digest
    oracle = np.asarray(
        Image.fromarray(digits[0][4]).convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)
    ).transpose(2, 0, 1)
    assert np.array_equal(wide.read([4])[0].numpy(), oracle)


def test_debians_fashion_mnist(tmp_path, digits, monkeypatch):
    row = table.TABLE["fashionmnist"]
    assert "/usr/share/datasets/fashion-mnist" in row.folders
    debian = tmp_path / "usr"
    monkeypatch.setitem(
        table.TABLE,
        "fashionmnist",
        dataclasses.replace(row, folders=("FashionMNIST/raw", str(debian))),
    )
    write_idx(debian, "train", *digits, packed=True)
    assert len(load("fmnist", "train", tmp_path / "nothing")) == 20


def test_svhn_and_the_subset_of_dice(tmp_path, monkeypatch):
    from scipy.io import savemat

    from ood.data import layouts

    monkeypatch.setattr(layouts, "SVHN_PER_LABEL", 2)
    labels = np.array([10, 1, 1, 10, 1, 2, 10, 3, 4, 5, 6, 7, 8, 9, 9, 9], dtype=np.uint8)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3, len(labels)), dtype=np.uint8)
    folder = tmp_path / "ood_datasets" / "svhn"
    folder.mkdir(parents=True)
    savemat(folder / "test_32x32.mat", {"X": pixels, "y": labels[:, None]})
    whole = load("svhn", "test", tmp_path)
    assert whole.labels.tolist() == (labels % 10).tolist() and whole.num_classes == 10
    assert np.array_equal(whole.images, pixels.transpose(3, 2, 0, 1))
    chosen = load("svhn_selected", "test", tmp_path)
    kept = [0, 1, 2, 3, 5, 7, 8, 9, 10, 11, 12, 13, 14]
    assert (chosen.labels == -1).all() and chosen.original_labels.tolist() == (
        labels[kept] % 10
    ).tolist()
    assert np.array_equal(chosen.images, whole.images[kept])
    savemat(folder / "selected_test_32x32.mat", {"X": pixels[..., :5], "y": labels[:5, None]})
    assert len(load("svhn_selected", "test", tmp_path, size=32)) == 5
    assert len(load("SVHN", "test", tmp_path)) == len(labels)


def cifar_files(root, labels_key=b"labels"):
    """Small pickles with the names of torchvision's CIFAR-10, and their md5 sums."""
    import hashlib
    import pickle

    from torchvision.datasets import CIFAR10

    folder = root / CIFAR10.base_folder
    folder.mkdir(parents=True)
    generator, sums = np.random.default_rng(1), {}
    for file in [
        *(name for name, _ in CIFAR10.train_list + CIFAR10.test_list),
        CIFAR10.meta["filename"],
    ]:
        content = (
            {"label_names": list("abcdefghij")}
            if file == CIFAR10.meta["filename"]
            else {
                "data": generator.integers(0, 256, (4, 3072), dtype=np.uint8),
                "labels": [3, 1, 4, 1],
            }
        )
        (folder / file).write_bytes(pickle.dumps(content))
        sums[file] = hashlib.md5((folder / file).read_bytes()).hexdigest()
    return folder, sums


@pytest.fixture
def small_cifar(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    folder, sums = cifar_files(tmp_path)
    monkeypatch.setattr(
        CIFAR10, "train_list", [[name, sums[name]] for name, _ in CIFAR10.train_list]
    )
    monkeypatch.setattr(CIFAR10, "test_list", [[name, sums[name]] for name, _ in CIFAR10.test_list])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": sums[CIFAR10.meta["filename"]]})
    return folder


def test_cifar_pickles(small_cifar, monkeypatch):
    from torchvision import datasets

    oracle = datasets.CIFAR10(small_cifar.parent, train=True)
    train = load("cifar10", "train", small_cifar.parent)
    assert (
        np.array_equal(train.images, oracle.data.transpose(0, 3, 1, 2))
        and train.labels.tolist() == oracle.targets
    )
    assert train.class_names[3] == "cat" and len(load("cifar10", "test", small_cifar.parent)) == 4
    monkeypatch.setattr(
        datasets,
        "CIFAR10",
        type(
            "CIFAR10",
            (),
            {  # the second time nothing is unpickled
                name: getattr(datasets.CIFAR10, name)
                for name in ("base_folder", "train_list", "test_list")
            },
        ),
    )
    again = load("cifar10", "train", small_cifar.parent)
    assert again.digest == train.digest and np.array_equal(again.images, train.images)


def test_damaged_cifar_pickle(small_cifar):
    (small_cifar / "data_batch_3").write_bytes(b"")
    with pytest.raises(InputError, match="incomplete or damaged"):
        load("cifar10", "train", small_cifar.parent)
    (small_cifar / "data_batch_3").unlink()
    with pytest.raises(InputError, match="'data_batch_3' is not there"):
        load("cifar10", "train", small_cifar.parent)


def test_cifar_as_numbered_folders(tmp_path):
    for label in range(100):
        write_image(tmp_path / "cifar100" / "test" / str(label) / "0.png")
    images = load("cifar100", "test", tmp_path)  # string order of the folders is 0, 1, 10, 11, ...
    assert all(int(path.split("/")[0]) == label for path, label in zip(images.paths, images.labels))


@pytest.mark.parametrize("layout", ["official", "val", "test"])
def test_tiny_imagenet(tmp_path, layout, monkeypatch):
    root, wnids = tmp_path / "tiny-imagenet-200", ["n03", "n01", "n02"]
    for wnid in wnids:
        for number in (0, 1):
            write_image(root / "train" / wnid / "images" / f"{wnid}_{number}.JPEG", size=(64, 64))
    files = [
        (f"val_{number}.JPEG", wnid)
        for number, wnid in ((0, "n02"), (1, "n01"), (10, "n03"), (2, "n02"))
    ]
    for file, wnid in files:
        write_image(
            root / ("val/images" if layout == "official" else f"{layout}/{wnid}") / file,
            size=(64, 64),
        )
    if layout != "test":
        write_image(root / "test" / "images" / "test_0.JPEG", size=(64, 64))
    (root / "val").mkdir(exist_ok=True)
    if layout == "official":
        (root / "val" / "val_annotations.txt").write_text(
            "".join(f"{file}\t{wnid}\t0\t0\t63\t63\n" for file, wnid in files)
        )
    monkeypatch.setitem(
        table.TABLE, "tinyimagenet", dataclasses.replace(info("tinyimagenet"), num_classes=3)
    )
    train, test = load("tinyimagenet", "train", tmp_path), load("tinyimagenet", "test", tmp_path)
    assert train.class_names == test.class_names == (
        "n01",
        "n02",
        "n03",
    ) and train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    truth = dict(files)
    assert [test.class_names[label] for label in test.labels] == [
        truth[path.split("/")[-1]] for path in test.paths
    ]
    if layout == "official":
        assert [path.split("/")[-1] for path in test.paths] == [
            "val_0.JPEG",
            "val_1.JPEG",
            "val_10.JPEG",
            "val_2.JPEG",
        ]


def test_npy_file(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    np.save(tmp_path / "random.npy", array)
    images = load(f"{tmp_path}/random.npy", "train", tmp_path)
    assert (images.name, images.split, len(images)) == ("random", "all", 5) and (
        images.labels == -1
    ).all()
    assert np.array_equal(images.images, array.transpose(0, 3, 1, 2))
    np.save(tmp_path / "floats.npy", array.astype(float))
    with pytest.raises(InputError, match="holds float64"):
        load(f"{tmp_path}/floats.npy", "train", tmp_path)


# --- sets as objects


def test_subsets_and_batches(photos):
    images = load(str(photos), "test", photos.parent)
    whole = everything(images)
    assert whole.dtype == torch.uint8 and whole.is_contiguous()
    assert [len(batch) for batch in images.batches(4)] == [4, 2]
    assert torch.equal(torch.cat(list(images.batches(2, indices=[5, 0, 3]))), whole[[5, 0, 3]])
    part = images.subset([4, 1, 2])
    assert (
        torch.equal(everything(part), whole[[4, 1, 2]])
        and part.labels.tolist() == images.labels[[4, 1, 2]].tolist()
    )
    assert part.paths == [images.paths[row] for row in (4, 1, 2)]
    nested = part.subset([False, True, True]).subset([-1])
    assert torch.equal(everything(nested), whole[[2]])
    middle = images.subset(slice(2, 5))
    assert (
        torch.equal(everything(middle), whole[2:5])
        and torch.equal(middle.read([2]), whole[[4]])
        and len(middle.images) == 3
    )
    digests = [
        s.digest
        for s in (images, part, middle, nested, images.subset([1, 4, 2]), images.as_outliers())
    ]
    assert len(set(digests)) == len(digests) and images.subset(slice(0, 6)).digest == images.digest
    batch = next(iter(images.batches(6)))
    batch.zero_()
    assert torch.equal(everything(images), whole)  # a batch is the caller's own


def test_indices_out_of_range_and_bad_batch_size(photos):
    images = load(str(photos), "test", photos.parent)
    with pytest.raises(IndexError):
        images.subset([6])
    with pytest.raises(IndexError):
        next(images.batches(2, indices=[-7]))
    with pytest.raises(InputError, match="batch size 0"):
        next(images.batches(0))


def test_as_outliers(photos):
    outliers = load(str(photos), "test", photos.parent).as_outliers()
    assert (outliers.labels == -1).all() and outliers.original_labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert outliers.as_outliers() is outliers


def test_limit_is_spread_and_first_is_first(photos):
    whole = load(str(photos), "test", photos.parent)
    spread = load(str(photos), "test", photos.parent, limit=3)
    assert (
        spread.paths == [whole.paths[row] for row in (0, 2, 4)]
        and set(spread.labels) == {0, 1}
        and spread.num_classes == 2
    )
    assert whole.limited(3).paths == spread.paths and torch.equal(
        everything(whole.limited(3)), everything(spread)
    )
    assert load(str(photos), "test", photos.parent, first=4).paths == whole.paths[:4]
    assert load(str(photos), "test", photos.parent, first=4, limit=2).paths == [
        whole.paths[0],
        whole.paths[3],  # the only one of the second class
    ]
    assert len(load(str(photos), "test", photos.parent, limit=100)) == 6


def test_array_images():
    array = np.zeros((4, 1, 5, 5), dtype=np.float32)
    images = ArrayImages(array, [0, 1, 0, 1], num_classes=2)
    assert images.shape == (1, 5, 5) and next(images.batches(3)).dtype == torch.float32
    assert ArrayImages(array).labels.tolist() == [-1] * 4
    assert ArrayImages(array + 1, [0, 1, 0, 1]).digest != images.digest
    with pytest.raises(InputError, match="4 images but 3 labels"):
        ArrayImages(array, [0, 1, 2])
    with pytest.raises(InputError, match="float64"):
        ArrayImages(array.astype(float))


def test_streamed_and_decoded_agree(photos, monkeypatch):
    kept = load(str(photos), "test", photos.parent, size=24)
    monkeypatch.setattr(request, "STREAM_SIDE", 8)
    streamed = load(str(photos), "test", photos.parent, size=24)
    assert isinstance(kept, ArrayImages) and isinstance(streamed, StreamedImages)
    assert (
        torch.equal(everything(kept), everything(streamed))
        and kept.labels.tolist() == streamed.labels.tolist()
    )
    part = streamed.subset([4, 0])
    assert torch.equal(everything(part), everything(kept)[[4, 0]])
    iterator = streamed.batches(1)
    next(iterator)
    iterator.close()  # leaves no thread behind
    monkeypatch.setattr(request, "STREAM_BYTES", 0)
    assert isinstance(load(str(photos), "test", photos.parent, size=24), StreamedImages)


# --- the decoded cache


def cache_files(folder):
    return (
        sorted(path.name for path in (folder / ".decoded").iterdir())
        if (folder / ".decoded").is_dir()
        else []
    )


def test_second_read_decodes_nothing(photos, monkeypatch):
    first = load(str(photos), "test", photos.parent)
    calls = []
    original = decoding.decode
    monkeypatch.setattr(
        decoding, "decode", lambda path, *rest: calls.append(path) or original(path, *rest)
    )
    second = load(str(photos), "test", photos.parent)
    assert len(calls) == 1 and second.digest == first.digest  # one: the first file gives the shape
    assert isinstance(second.images, np.memmap) and torch.equal(
        everything(first), everything(second)
    )
    assert len(cache_files(photos.parent)) == 1
    assert len(ImageFolder(photos)) == 6  # nothing was put among the images


def test_same_names_sizes_and_times_are_told_apart(tmp_path):
    for number, name in enumerate(("one", "two")):
        write_image(tmp_path / name / "0.ppm", seed=number)
        os.utime(tmp_path / name / "0.ppm", ns=(0, 0))
    one, two = (load(f"{tmp_path}/{name}", "test", tmp_path) for name in ("one", "two"))
    assert one.digest != two.digest and not torch.equal(everything(one), everything(two))


def test_changed_file_is_decoded_again(photos):
    before = load(str(photos), "test", photos.parent)
    target = photos / "a" / "2.png"
    pixels = everything(before)
    write_image(target, seed=99)
    os.utime(target, ns=(1, 1))
    after = load(str(photos), "test", photos.parent)
    row = after.paths.index("a/2.png")
    assert after.digest != before.digest and not torch.equal(after.read([row]), pixels[[row]])
    assert torch.equal(everything(before), pixels)  # the old map stays valid for whoever holds it
    assert len(cache_files(photos.parent)) == 1  # and its file is gone
    os.utime(target, ns=(2, 2))
    assert load(str(photos), "test", photos.parent).digest != after.digest
    (photos / "a" / "10.png").unlink()
    assert len(load(str(photos), "test", photos.parent)) == 5


def test_digest_knows_the_decoding_but_not_the_place(photos, tmp_path):
    images = load(str(photos), "test", photos.parent, size=24)
    others = [
        load(str(photos), "test", photos.parent, **options)
        for options in (
            {"size": 24, "channels": 1},
            {"size": 20},
            {"size": 24, "resize": 30},
            {"size": 24, "limit": 3},
            {"size": 24, "resize": (24, 24)},
        )
    ]
    assert len({images.digest, *(other.digest for other in others)}) == 6
    photos.rename(tmp_path / "moved")
    assert load(f"{tmp_path}/moved", "test", tmp_path, size=24).digest == images.digest


def zeros(content, start, end):
    return content[:start] + bytes(end - start) + content[end:]


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda content: content[:300], "cannot be read"),
        (lambda content: b"", "cannot be read"),
        (lambda content: content[:-30] + b"\x80" + content[-29:], "does not agree"),
        (lambda content: content[:1000] + bytes([content[1000] ^ 1]) + content[1001:], "not agree"),
        (lambda content: zeros(content, 2000, 2000 + 4096), "does not agree"),
        (lambda content: content.replace(b"(6, 3, 32, 32)", b"(3, 6, 32, 32)"), "does not agree"),
        (lambda content: content.replace(b"|u1", b"|i1"), "is not whole"),
        (lambda content: content[: -array_cache.SEAL_BYTES], "has no checksum"),
        (lambda content: content[:-1] + bytes([content[-1] ^ 1]), "does not agree"),
    ],
)
def test_damaged_cache_is_decoded_again(photos, capsys, damage, words):
    """Whatever happened to the file, the pixels are right, and one line says what was done."""
    images = load(str(photos), "test", photos.parent)
    whole, [name] = everything(images), cache_files(photos.parent)
    file = photos.parent / ".decoded" / name
    content = file.read_bytes()
    assert damage(content) != content
    file.write_bytes(damage(content))
    capsys.readouterr()
    assert torch.equal(everything(load(str(photos), "test", photos.parent)), whole)
    [line] = capsys.readouterr().out.splitlines()
    assert name in line and words in line and line.endswith("its images are decoded again")
    assert file.read_bytes() == content
    load(str(photos), "test", photos.parent)
    assert capsys.readouterr().out == ""


def test_every_block_of_the_cache_is_checked(tmp_path, monkeypatch):
    """Any single bit of the file counts, in the first block and in the last."""
    monkeypatch.setattr(array_cache, "BLOCK", 1000)
    array = np.random.default_rng(0).integers(0, 256, (4, 3, 16, 16), dtype=np.uint8)
    calls = []

    def plan():
        return array.shape, lambda empty: calls.append(1) or np.copyto(empty, array)

    array_cache.kept_array(tmp_path, "slot", "digest", plan)
    [file] = (tmp_path / ".decoded").iterdir()
    content = file.read_bytes()
    for place in range(130, len(content), 157):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        file.write_bytes(changed)
        assert np.array_equal(array_cache.kept_array(tmp_path, "slot", "digest", plan), array)
        assert file.read_bytes() == content
    assert len(calls) == 1 + len(range(130, len(content), 157))


def test_failed_decoding_leaves_nothing(photos, private_temp):
    write_image(photos / "a" / "3.jpg", size=(32, 32))
    content = (photos / "a" / "3.jpg").read_bytes()
    (photos / "a" / "3.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"cannot decode the image '.*a/3\.jpg'"):
        load(str(photos), "test", photos.parent)
    assert cache_files(photos.parent) == [] and list(private_temp.iterdir()) == []


def test_interrupted_decoding_leaves_nothing(photos, monkeypatch):
    original = decoding.decode

    def interrupted(path, *rest):
        if path.name == "2.png":
            raise KeyboardInterrupt
        return original(path, *rest)

    monkeypatch.setattr(decoding, "decode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load(str(photos), "test", photos.parent)
    assert cache_files(photos.parent) == []


def test_leftovers_of_a_killed_run_are_removed(photos):
    """What a killed process left is removed at the next reading; what is being written stays."""
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:

        def stall(_):
            os.write(told, b"x")
            time.sleep(60)

        array_cache.kept_array(photos.parent, "slot", "digest", lambda: ((2, 3, 4, 4), stall))
        os._exit(1)
    os.read(ready, 1)
    [unfinished] = cache_files(photos.parent)
    load(str(photos), "test", photos.parent)
    assert unfinished.endswith(".tmp") and unfinished in cache_files(photos.parent)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    load(str(photos), "test", photos.parent)  # even one that finds its own array
    assert [name[-4:] for name in cache_files(photos.parent)] == [".npy"]


def test_cache_elsewhere_or_nowhere(photos, private_temp, monkeypatch):
    (photos.parent / ".decoded").write_text(
        "a file, so that no folder can be made"
    )  # root may write anywhere
    images = load(str(photos), "test", photos.parent)
    assert isinstance(images.images, np.memmap) and len(list(private_temp.iterdir())) == 1
    monkeypatch.setattr(
        array_cache, "_private_temp", lambda: photos.parent / ".decoded" / "nothing"
    )
    kept = load(str(photos), "test", photos.parent, channels=1)
    assert not isinstance(kept.images, np.memmap) and len(everything(kept)) == 6


def test_full_disk(photos, private_temp, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(decoding.os, "posix_fallocate", full)
    assert len(everything(load(str(photos), "test", photos.parent))) == 6
    assert cache_files(photos.parent) == [] and list(private_temp.iterdir()) == []


# --- pixels


@pytest.mark.parametrize(
    "size, shape",
    [
        (32, (50, 40)),
        (32, (40, 51)),
        (32, (33, 97)),
        (32, (20, 25)),
        (32, (32, 32)),
        (31, (45, 46)),
    ],
)
def test_resize_and_crop_equal_torchvision(size, shape):
    image = Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (shape[1], shape[0], 3), dtype=np.uint8)
    )
    oracle = tv.Compose([tv.Resize(size), tv.CenterCrop(size)])(image)
    assert np.array_equal(Recipe(3, size, size)(image), np.asarray(oracle).transpose(2, 0, 1))
    oracle = tv.Compose([tv.Resize(size + 9), tv.CenterCrop(size)])(image)
    assert np.array_equal(Recipe(3, size + 9, size)(image), np.asarray(oracle).transpose(2, 0, 1))
    oracle = tv.Resize((size, size))(image)
    assert np.array_equal(
        Recipe(3, (size, size), size)(image), np.asarray(oracle).transpose(2, 0, 1)
    )


@pytest.mark.parametrize(
    "shape, resize",
    [((64, 64), 32), ((50, 40), 32), ((20, 25), 32), ((33, 97), (32, 32)), ((7, 9), (32, 32))],
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_resize_without_antialias_equals_torchvisions_tensors(shape, resize, mode):
    """Resize of a float tensor, antialias=False; ours is rounded to whole numbers."""
    shape = (*shape, 3) if mode == "RGB" else shape
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    tensor = tv.functional.to_tensor(Image.fromarray(array))
    oracle = tv.functional.resize(tensor, resize, antialias=False) * 255
    ours = Recipe(None, resize, antialias=False)(Image.fromarray(array))
    assert ours.shape == tuple(oracle.shape)
    assert np.abs(ours - oracle.numpy()).max() <= 0.5 + 1e-3
    filtered = Recipe(None, resize)(Image.fromarray(array))
    assert np.abs(ours - filtered.astype(float)).max() > 20 or max(shape) < 30


def test_auxiliary_images_resized_as_released(tmp_path):
    """No filter, no crop; images of the right size already are the same either way."""
    for number in range(4):
        write_image(tmp_path / "pool" / f"{number}.png", size=(64, 64), seed=number)
        write_image(tmp_path / "wide" / f"{number}.png", size=(96, 64), seed=number)
        write_image(tmp_path / "small" / f"{number}.png", seed=number)

    def drawn(pool, **options):
        images = auxiliary.draw(
            f"{tmp_path}/{pool}", 4, 0, tmp_path, size=32, channels=3, **options
        )
        return images.images

    stored = load(f"{tmp_path}/pool", "test", tmp_path).images
    released = drawn("pool", resizing="released")
    oracle = tv.functional.resize(torch.tensor(stored) / 255, 32, antialias=False) * 255
    assert np.abs(released - oracle.numpy()).max() <= 0.5 + 1e-3
    assert not np.array_equal(released, drawn("pool"))
    assert np.array_equal(drawn("small"), drawn("small", resizing="released"))
    array = tmp_path / "pool.npy"
    np.save(array, stored.transpose(0, 2, 3, 1))
    assert np.array_equal(drawn("pool.npy", resizing="released"), released)
    with pytest.raises(InputError, match=r"'.*wide' at 48x32.*give resize as a pair, \[32, 32\]"):
        drawn("wide", resizing="released")
    assert drawn("wide", resizing="released", resize=[32, 32]).shape == (4, 3, 32, 32)
    with pytest.raises(InputError, match="unknown resizing 'legacy'; known: test, released"):
        drawn("pool", resizing="legacy")


def test_channels(tmp_path):
    for number, mode in enumerate(("RGB", "L", "RGB")):
        write_image(tmp_path / "mixed" / f"{number}.png", mode=mode)
    mixed = load(f"{tmp_path}/mixed", "test", tmp_path)
    assert mixed.shape[0] == 3
    second = mixed.read([1])[0]
    assert torch.equal(second[0], second[1])  # grey among colour becomes colour
    assert load(f"{tmp_path}/mixed", "test", tmp_path, channels=1).shape == (1, 32, 32)
    write_image(tmp_path / "mixed" / "00.png", mode="L")
    (tmp_path / "mixed" / "0.png").rename(tmp_path / "mixed" / "3.png")
    with pytest.raises(
        InputError, match="in colour but the first image of the set is grey; ask for channels=3"
    ):
        load(f"{tmp_path}/mixed", "test", tmp_path)  # colour among grey is not thrown away silently


def test_16_bits_are_scaled_not_clipped(tmp_path):
    values = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    (tmp_path / "deep").mkdir()
    Image.fromarray(values).save(tmp_path / "deep" / "0.png")
    images = load(f"{tmp_path}/deep", "test", tmp_path)
    assert np.array_equal(images.images[0, 0], (values >> 8).astype(np.uint8))


# Where a camera's first row and first column are, as the EXIF orientation 1..8 says, and what a
# viewer does about it: (flip left-right, then turn so many quarters counter-clockwise).
ORIENTATIONS = {
    1: (0, 0),
    2: (1, 0),
    3: (0, 2),
    4: (1, 2),
    5: (1, 1),
    6: (0, 3),
    7: (1, 3),
    8: (0, 1),
}


def turned(array, orientation):
    flip, quarters = ORIENTATIONS[orientation]
    return np.rot90(array[:, ::-1] if flip else array, quarters)


def write_turned(path, array, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, exif=exif)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_own_pictures_are_turned_upright(tmp_path, orientation, monkeypatch):
    array = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    write_turned(tmp_path / "own" / "0.png", array, orientation)
    (tmp_path / "own.txt").write_text("own/0.png\n")
    for name in ("own", "own.txt"):
        image = load(str(tmp_path / name), "test", tmp_path).read([0])[0].numpy()
        assert np.array_equal(image.transpose(1, 2, 0), turned(array, orientation))
    monkeypatch.setattr(request, "STREAM_SIDE", 8)
    streamed = load(f"{tmp_path}/own", "test", tmp_path)
    assert isinstance(streamed, StreamedImages)
    assert np.array_equal(
        streamed.read([0])[0].numpy().transpose(1, 2, 0), turned(array, orientation)
    )


def test_turned_pictures_of_one_shape(tmp_path, monkeypatch):
    """What counts is the shape of the upright picture, decoded or streamed."""
    wide = np.zeros((20, 30, 3), dtype=np.uint8)
    write_turned(tmp_path / "own" / "0.jpg", wide, 1)
    write_turned(tmp_path / "own" / "1.jpg", wide.transpose(1, 0, 2), 6)
    assert load(f"{tmp_path}/own", "test", tmp_path).shape == (3, 20, 30)
    monkeypatch.setattr(request, "STREAM_SIDE", 8)
    assert load(f"{tmp_path}/own", "test", tmp_path).shape == (3, 20, 30)
    write_turned(tmp_path / "own" / "2.jpg", wide, 8)
    with pytest.raises(InputError, match="2.jpg' is 20x30 but '0.jpg' is 30x20"):
        load(f"{tmp_path}/own", "test", tmp_path)


def test_the_digest_says_that_pictures_are_upright(tmp_path):
    """Published sets are read as they lie, with the digest that they always had."""
    array = np.zeros((4, 4, 3), dtype=np.uint8)
    array[0] = 255
    write_turned(tmp_path / "ood_datasets" / "iSUN" / "0.png", array, 3)
    known = load("iSUN", "test", tmp_path)
    own = load(f"{tmp_path}/ood_datasets/iSUN", "test", tmp_path)
    assert known.read([0])[0, 0, 0, 0] == 255 and own.read([0])[0, 0, 3, 0] == 255
    assert known.digest != own.digest
    assert repr(Recipe(3, 8, 8)) == "Recipe(channels=3, resize=8, size=8, invert=False)"
    assert repr(Recipe(upright=True, antialias=False)).endswith("upright=True, antialias=False)")


def test_damaged_exif_data_do_not_hide_the_picture(tmp_path):
    (tmp_path / "own").mkdir()
    image = Image.fromarray(np.full((8, 8, 3), 7, dtype=np.uint8))
    for number, exif in enumerate((b"Exif\0\0MM\0*\0\0\0\x08\0", b"Exif\0\0nonsense", b"x")):
        image.save(tmp_path / "own" / f"{number}.jpg", exif=exif, quality=100)
    assert len(load(f"{tmp_path}/own", "test", tmp_path)) == 3


# --- errors: one line that names the thing and says what to do


@pytest.mark.parametrize(
    "call, words",
    [
        (dict(name="iSNU"), r"unknown data set 'iSNU' \(did you mean 'iSUN'\?\)"),
        (dict(name="IMAGENET"), "ambiguous: write one of Imagenet, imagenet"),
        (dict(name="cifar10", split="tset"), r"unknown split 'tset' \(did you mean 'test'\?\)"),
        (dict(name="omniglot", split="train"), "has no split 'train', only: test"),
        (
            dict(name="iSUN"),
            r"'iSUN' \(test\) is not in '.*ood_datasets/iSUN'.*add -download, "
            r"or fetch it with `python3 scripts/download_data.py iSUN -data_dir",
        ),
        (dict(name="cifar10"), r"is not in '.*cifar-10-batches-py'.*cifar10/test.*add -download"),
        (
            dict(name="imagenet"),
            r"is not in '.*ILSVRC-2012/val'.*register at https://www.image-net.org",
        ),
        (dict(name="tinyimagenet"), r"is not in '.*tiny-imagenet-200/train'.*cs231n"),
        (dict(name="svhn"), r"is not in '.*svhn/test_32x32.mat'"),
        (dict(name="mnist"), r"is not in '.*MNIST/raw'"),
        (dict(name="mnist_noise"), r"'mnist' \(test\) is not in"),
        (dict(name="tinyimages"), "withdrawn"),
        (dict(name="./no-such-folder"), "no folder 'no-such-folder'"),
        (dict(name="./no-such.npy"), "no file 'no-such.npy'"),
        (dict(name="mnist5k", limit=0), "must be at least 1"),
        (dict(name="mnist5k", channels=2), "channels=2"),
        (dict(name="mnist5k", size=-3), "must be positive"),
        (dict(name="mnist5k", size=28, resize=20), "smaller than size=28"),
        (dict(name="mnist5k", base="mnist"), "'base' .* has no meaning"),
    ],
)
def test_bad_requests(tmp_path, call, words):
    with pytest.raises(InputError, match=words) as caught:
        load(**{"split": "test", "data_dir": tmp_path / "data", **call})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "data").exists() or not any((tmp_path / "data").iterdir())


def test_empty_folder(tmp_path):
    (tmp_path / "ood_datasets" / "iSUN" / "iSUN_patches").mkdir(parents=True)
    with pytest.raises(InputError, match="no images in '.*iSUN'"):
        load("iSUN", "test", tmp_path)


def test_images_beside_class_folders(photos):
    write_image(photos / "loose.png")
    with pytest.raises(
        InputError, match=r"holds images beside folders of images \(loose.png, a/\)"
    ):
        load(str(photos), "test", photos.parent)


@pytest.mark.parametrize(
    "content", [b"", b"\x89PNG\r\n\x1a\n", b"not an image at all", b"\xff\xd8\xff\xe0broken"]
)
@pytest.mark.parametrize("position", ["0.png", "z.png"])
def test_damaged_image_is_named(photos, content, position):
    (photos / "a" / position).write_bytes(content)
    with pytest.raises(
        InputError, match=rf"cannot decode the image '.*a/{position}' \(.*replace it or remove it"
    ) as caught:
        load(str(photos), "test", photos.parent, size=24)
    assert "\n" not in str(caught.value)


def test_damaged_image_of_a_streamed_set_is_named(photos, monkeypatch):
    monkeypatch.setattr(request, "STREAM_SIDE", 8)
    (photos / "a-b" / "2.png").write_bytes((photos / "a-b" / "2.png").read_bytes()[:200])
    with pytest.raises(InputError, match="a-b/2.png"):
        everything(load(str(photos), "test", photos.parent, size=24), 1)


def test_broken_link(photos):
    (photos / "a" / "5.png").symlink_to(photos / "nowhere.png")
    with pytest.raises(InputError, match="cannot read '.*a/5.png'"):
        load(str(photos), "test", photos.parent)


def test_different_shapes_without_a_size(photos, monkeypatch):
    write_image(photos / "a-b" / "99.png", size=(32, 40))
    words = (
        r"a-b/99.png' is 32x40.*first image of the set is 32x32"
        r"|a-b/99.png' is 32x40 but 'a/1.png' is 32x32"
    )
    with pytest.raises(InputError, match=words):
        load(str(photos), "test", photos.parent)
    monkeypatch.setattr(request, "STREAM_SIDE", 8)
    with pytest.raises(InputError, match=words):
        load(str(photos), "test", photos.parent)
    assert len(load(str(photos), "test", photos.parent, size=24)) == 7


def test_class_count_and_names_must_fit(tmp_path):
    for name in ("airplane", "cat"):
        write_image(tmp_path / "cifar10" / "test" / name / "0.png")
    with pytest.raises(
        InputError, match="has 2 class folders with images, but 'cifar10' has 10 classes"
    ):
        load("cifar10", "test", tmp_path)
    for name in ("automobile", "bird", "deer", "dog", "frog", "horse", "ship", "lorry"):
        write_image(tmp_path / "cifar10" / "test" / name / "0.png")
    with pytest.raises(InputError, match="lorry' is no class of 'cifar10'"):
        load("cifar10", "test", tmp_path)
    write_image(tmp_path / "ILSVRC-2012" / "val" / "ILSVRC2012_val_00000001.JPEG")
    with pytest.raises(
        InputError, match="holds images without class folders; 'imagenet' needs 1000"
    ):
        load("imagenet", "test", tmp_path, size=224, resize=256)


@pytest.mark.parametrize(
    "damage, words",
    [
        (
            lambda path: path.write_bytes(path.read_bytes()[:-5]),
            "should have 15696 bytes but has 15691",
        ),
        (
            lambda path: path.write_bytes(b"\0\0\x08\x01" + path.read_bytes()[4:]),
            "is no idx file of 3 dimension",
        ),
        (lambda path: path.write_bytes(b""), "damaged|no idx file"),
    ],
)
def test_damaged_idx_file(tmp_path, digits, damage, words):
    write_idx(tmp_path / "MNIST" / "raw", "t10k", *digits)
    damage(tmp_path / "MNIST" / "raw" / "t10k-images-idx3-ubyte")
    with pytest.raises(InputError, match=words):
        load("mnist", "test", tmp_path)


def test_damaged_gzip_and_labels(tmp_path, digits):
    folder = tmp_path / "MNIST" / "raw"
    write_idx(folder, "t10k", *digits, packed=True)
    file = folder / "t10k-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match="is damaged"):
        load("mnist", "test", tmp_path)
    write_idx(folder, "t10k", digits[0], digits[1][:-1])
    with pytest.raises(InputError, match="holds 20 images but .* 19 labels"):
        load("mnist", "test", tmp_path)
    write_idx(folder, "t10k", digits[0], digits[1] + 5)
    with pytest.raises(InputError, match="holds the label 14, but 'mnist' has 10 classes"):
        load("mnist", "test", tmp_path)


def test_damaged_mat_file(tmp_path):
    (tmp_path / "svhn").mkdir()
    (tmp_path / "svhn" / "test_32x32.mat").write_bytes(b"MATLAB 5.0 MAT-file" + bytes(200))
    with pytest.raises(InputError, match="damaged or no SVHN file"):
        load("svhn", "test", tmp_path)


def test_annotations_that_do_not_fit(tmp_path):
    root = tmp_path / "tiny-imagenet-200"
    write_image(root / "train" / "n01" / "images" / "0.JPEG", size=(64, 64))
    with pytest.raises(InputError, match="val_annotations.txt"):
        load("tinyimagenet", "test", tmp_path)
    (root / "val").mkdir()
    for text, words in (
        ("val_0.JPEG\tn99\n", "n99"),
        ("val_0.JPEG\tn01\n", "which is not in"),
        ("", "empty"),
    ):
        (root / "val" / "val_annotations.txt").write_text(text)
        with pytest.raises(InputError, match=words):
            load("tinyimagenet", "test", tmp_path)


# --- download, from a local server


@pytest.fixture
def server(tmp_path):
    import functools
    import http.server
    import threading

    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(
        type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None}),
        directory=folder,
    )
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{running.server_port}/"
        running.shutdown()


def serve(monkeypatch, name, address, md5=None):
    """Fetch the archives of `name` from `address`, with the checksums of `md5` ({file: sum})."""
    row = info(name)
    archives = tuple(
        dataclasses.replace(
            archive,
            urls=(address + archive.name,),
            bytes=None,
            md5=(md5 or {}).get(archive.name, "0" * 32),
        )
        for archive in row.archives
    )
    monkeypatch.setitem(table.TABLE, name, dataclasses.replace(row, archives=archives))


def test_download_verifies_the_checksum(tmp_path, server, digits, monkeypatch):
    import hashlib

    folder, address = server
    for prefix in ("train", "t10k"):
        write_idx(folder, prefix, *digits, packed=True)
    sums = {file.name: hashlib.md5(file.read_bytes()).hexdigest() for file in folder.iterdir()}
    serve(monkeypatch, "mnist", address)
    with pytest.raises(
        InputError, match="could not download 'mnist'.*has the md5 .* instead of 0000"
    ):
        load("mnist", "test", tmp_path / "data", download=True)
    assert not (tmp_path / "data" / "MNIST").exists()
    serve(monkeypatch, "mnist", address, sums)
    monkeypatch.setitem(table.TABLE, "mnist", dataclasses.replace(info("mnist"), count={}))
    assert len(load("mnist", "test", tmp_path / "data", download=True)) == 20


def test_download_that_is_wrong_leaves_no_folder(tmp_path, server, monkeypatch):
    import hashlib
    import zipfile

    folder, address = server
    write_image(
        tmp_path / "images_evaluation" / "Latin" / "character01" / "0.png",
        size=(105, 105),
        mode="L",
    )
    with zipfile.ZipFile(folder / "images_evaluation.zip", "w") as archive:
        archive.write(
            tmp_path / "images_evaluation" / "Latin" / "character01" / "0.png",
            "images_evaluation/Latin/character01/0.png",
        )
    serve(monkeypatch, "omniglot", address)
    with pytest.raises(InputError, match="could not download 'omniglot'"):
        load("omniglot", "test", tmp_path / "data", size=28, download=True)
    assert not (tmp_path / "data" / "omniglot-py").exists()
    serve(
        monkeypatch,
        "omniglot",
        address,
        {
            "images_evaluation.zip": hashlib.md5(
                (folder / "images_evaluation.zip").read_bytes()
            ).hexdigest()
        },
    )
    with pytest.raises(
        InputError, match="1 of 13,180 images"
    ):  # fetched, but not what was published
        load("omniglot", "test", tmp_path / "data", size=28, download=True)
    images = load("omniglot", "test", tmp_path / "data", size=28)
    assert (
        len(images) == 1
        and images.shape == (1, 28, 28)
        and {"downloads.json", "omniglot-py"} < set(os.listdir(tmp_path / "data"))
    )


# --- memory


def test_what_does_not_fit_into_memory_is_refused(tmp_path, photos, private_temp, monkeypatch):
    """One line instead of a killed process: one image, a batch, a whole set, a full disk."""
    monkeypatch.setattr(memory, "limit", lambda: 10**6)
    with pytest.raises(InputError, match="decoding images to 800x800 pixels.*smaller size"):
        load("mnist5k", "test", tmp_path, size=800)
    with pytest.raises(InputError, match="mnist5k with images .1, 56, 56. would need"):
        load("mnist5k", "test", tmp_path, size=56)
    images = load(str(photos), "test", photos.parent, size=200)
    assert isinstance(images, StreamedImages) and len(images.read([0, 1])) == 2
    for ask in (lambda: next(images.batches(6)), lambda: images.read([0] * 10)):
        with pytest.raises(InputError, match="images .3, 200, 200. of 'photos' at a time would ne"):
            ask()
    assert sum(map(len, images.batches(1))) == 6

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(array_cache.os, "posix_fallocate", full)
    monkeypatch.setattr(memory, "limit", lambda: 10**4)
    with pytest.raises(InputError, match="no disk has room for 6 decoded images .3, 24, 24."):
        load(str(photos), "test", photos.parent, size=24)


def test_the_limit_is_that_of_the_container(tmp_path, monkeypatch):
    machine = memory.limit()
    assert 10**8 < machine < 2**50
    for text, wanted in (("123456789\n", 123456789), ("max\n", machine), (f"{2**62}\n", machine)):
        (tmp_path / "memory.max").write_text(text)
        monkeypatch.setattr(memory, "CGROUP_LIMITS", (tmp_path / "memory.max", tmp_path / "none"))
        assert memory.limit.__wrapped__() == wanted


# --- the table


def test_registry_rows_are_complete():
    from ood.data.readers import READERS

    for name in names():
        row = info(name)
        assert (
            row.name == name
            and row.reader in READERS
            and row.role in ("id", "ood")
            and set(row.splits) <= {"train", "test", "val"}
        )
        assert len(row.mean) == len(row.std) == row.channels and row.layout and row.licence
        assert row.fetch or row.archives or row.prepare or row.needs or row.reader in ("noise",)
        assert row.role == "ood" or row.num_classes == len(
            row.class_names or range(row.num_classes)
        )
        assert all(len(archive.md5) == 32 for archive in row.archives if archive.md5)
        assert all(archive.mirrors or row.steps for archive in row.archives) and all(
            info(other).name == other for other in row.needs
        )
        assert "{" not in row.fetch.format(data_dir="datasets").replace("{train,val}", "")
    known = [alias.lower() for name in names() for alias in info(name).aliases]
    assert len(known) == len(set(known)) and not set(known) & {name.lower() for name in names()}
    assert info("lsun-r").name == "LSUN_resize" and info("isun").name == "iSUN"


def test_every_set_is_in_the_readme():
    from pathlib import Path

    readme = (Path(__file__).parents[1] / "datasets" / "README.md").read_text()
    assert [name for name in names() if f"`{name}`" not in readme] == []
