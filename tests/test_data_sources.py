"""Own data in tables, tar shards and the layout of the hub: equal to the same folder."""

import csv
import io
import json
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from ood.config import InputError
from ood.data import load
from ood.data.images import ArrayImages, StreamedImages

CLASSES = ("cat", "dog")


def picture(seed, side):
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side + 4, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png(image):
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


@pytest.fixture(scope="module", params=[20, 120], ids=["small", "large"])
def photos(request, tmp_path_factory):
    """A folder train/test x cat/dog, and the list of its (split, class, path, content)."""
    root, files = tmp_path_factory.mktemp("sources"), []
    for number, (split, name) in enumerate((s, c) for s in ("train", "test") for c in CLASSES):
        for i in range(3 if split == "train" else 2):
            path = root / "photos" / split / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            content = png(picture(10 * number + i, request.param))
            path.write_bytes(content)
            files.append((split, name, path, content))
    return root, files


def same(found, expected):
    assert found.class_names == expected.class_names == CLASSES
    assert found.labels.tolist() == expected.labels.tolist()
    assert torch.equal(found.read(slice(0, len(found))), expected.read(slice(0, len(expected))))
    assert torch.equal(torch.cat(list(found.batches(2))), expected.read(slice(0, len(expected))))


def both(photos, name, **options):
    root, _ = photos
    for split in ("train", "test"):
        expected = load(str(root / "photos"), split, root, size=16)
        found = load(name, split, root, size=16, **options)
        same(found, expected)
        assert found.digest == load(name, split, root, size=16, **options).digest
    return found


def write_table(root, files, suffix=".csv", names=("path", "label", "split")):
    rows = [(str(path.relative_to(root)), name, split) for split, name, path, _ in files]
    file = root / f"table{suffix}"
    if suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.table(dict(zip(names, map(list, zip(*rows))))), file)
        return file
    with open(file, "w", newline="") as content:
        writer = csv.writer(content, delimiter="\t" if suffix == ".tsv" else ",")
        writer.writerows([names, *rows])
    return file


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_a_table_is_the_folder(photos, suffix):
    root, files = photos
    both(photos, str(write_table(root, files, suffix)))


def test_a_table_without_split_or_labels(photos):
    root, files = photos
    paths = [str(path.relative_to(root)) for *_, path, _ in files]
    (root / "plain.csv").write_text("\n".join(["file", *paths]))
    found = load(str(root / "plain.csv"), "test", root, size=16)
    assert len(found) == len(files) and found.split == "all" and (found.labels == -1).all()
    assert (
        load(str(root / "plain.csv"), "train", root, size=16, limit=3).labels.tolist() == [-1] * 3
    )


@pytest.mark.parametrize(
    "text, words",
    [
        ("name,label\na.png,1", "one of them must be called path"),
        ("path,label\n../a.png,1", "does not stay below"),
        ("path,label\na.png,cat\nb.png,", "1 of 2 images have no class"),
        ("path,label\na.png", "1 values for 2 columns"),
        ("path,label\nnowhere.png,1", "which is neither in"),
        ("path,split\na.png,training", "column split holds: training"),
        ("path", "lists no images"),
        ("", "columns none"),
    ],
)
def test_a_wrong_table_is_refused(tmp_path, text, words):
    (tmp_path / "table.csv").write_text(text)
    with pytest.raises(InputError, match=words):
        load(str(tmp_path / "table.csv"), "train", tmp_path)
    with pytest.raises(InputError, match="no file"):
        load(str(tmp_path / "missing.csv"), "train", tmp_path)


def write_shards(root, files, kind="cls", per_shard=2, mode="w", stem="shards"):
    """Shards of `per_shard` samples, labels as .cls or .json, whose files come before the image."""
    (root / stem).mkdir(exist_ok=True)
    for split in ("train", "test"):
        mine = [file for file in files if file[0] == split]
        for shard, start in enumerate(range(0, len(mine), per_shard)):
            with tarfile.open(root / stem / f"{split}-{shard:04d}.tar", mode) as archive:
                for number, (_, name, _, content) in enumerate(mine[start : start + per_shard]):
                    label = name if kind == "cls" else json.dumps({"label": name, "x": [1]})
                    for suffix, data in ((kind, label.encode()), ("png", content)):
                        entry = tarfile.TarInfo(f"deep/{start + number:06d}.{suffix}")
                        entry.size = len(data)
                        archive.addfile(entry, io.BytesIO(data))
    return root / stem


@pytest.mark.parametrize("kind", ["cls", "json"])
def test_shards_are_the_folder(photos, kind):
    root, files = photos
    folder = write_shards(root, files, kind, stem=kind)
    found = both(photos, f"{folder}/{{split}}-*.tar")
    large = max(Image.open(files[0][2]).size) > 100
    assert isinstance(found, ArrayImages) and not large or len(found) == 4
    expected = load(str(root / "photos"), "train", root, size=16)
    same(load(f"{folder}/train-{{0000..0002}}.tar", "train", root, size=16), expected)
    few = load(f"{folder}/train-*.tar", "test", root, size=16, limit=4)
    assert isinstance(few, StreamedImages) and sorted(few.labels.tolist()) == [0, 0, 1, 1]


def test_shards_feed_loaders_with_workers(photos):
    root, files = photos
    folder = write_shards(root, files, stem="loader")
    images = load(f"{folder}/train-*.tar", "train", root, size=16, limit=5)
    loader = torch.utils.data.DataLoader(images, batch_size=2, num_workers=2)
    found = torch.cat([batch for batch, _ in loader])
    assert torch.equal((found * 255).round().byte(), images.read(slice(0, 5)))


def test_wrong_shards_are_refused(photos, tmp_path):
    root, files = photos
    folder = write_shards(root, files, mode="w:gz", stem="packed")
    with pytest.raises(InputError, match="is compressed"):
        load(f"{folder}/train-*.tar", "train", root)
    with pytest.raises(InputError, match="no shards"):
        load(f"{folder}/valid-*.tar", "train", root)
    good = write_shards(root, files, stem="gaps")
    with pytest.raises(InputError, match="1 shards of .* are missing"):
        load(f"{good}/train-{{0000..0003}}.tar", "train", root)
    with pytest.raises(InputError, match="more than 100,000"):
        load(f"{good}/train-{{0..999999999}}.tar", "train", root)
    (tmp_path / "x.tar").write_bytes(b"no tar" * 400)
    with pytest.raises(InputError, match="no whole tar file"):
        load(str(tmp_path / "x.tar"), "train", root)
    whole = (good / "train-0000.tar").read_bytes()
    for length in (len(whole) // 3, len(whole) - 10240, 512):
        (tmp_path / "cut.tar").write_bytes(whole[:length])
        with pytest.raises(InputError, match="is cut off|no whole tar"):
            load(str(tmp_path / "cut.tar"), "train", root, size=16)


def test_a_damaged_image_in_a_shard_is_named(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        entry = tarfile.TarInfo("0.png")
        entry.size = 5
        archive.addfile(entry, io.BytesIO(b"hello"))
    with pytest.raises(InputError, match=r"cannot decode the image '.*x.tar/0.png'"):
        load(str(tmp_path / "x.tar"), "train", tmp_path)


def test_a_set_in_the_layout_of_the_hub_is_the_folder(photos, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    if not hasattr(datasets, "load_dataset"):  # the folder of that name
        pytest.skip("the library datasets is not installed")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache", raising=False)
    root, files = photos
    folder = tmp_path / "hub"
    features = datasets.Features(
        {"img": datasets.Image(), "fine": datasets.ClassLabel(names=list(CLASSES))}
    )
    for split in ("train", "test"):
        mine = [file for file in files if file[0] == split]
        table = datasets.Dataset.from_dict(
            {
                "img": [{"bytes": content, "path": None} for *_, content in mine],
                "fine": [CLASSES.index(name) for _, name, _, _ in mine],
            },
            features=features,
        )
        (folder / "data").mkdir(parents=True, exist_ok=True)
        table.to_parquet(str(folder / "data" / f"{split}-00000-of-00001.parquet"))
    both(photos, f"hf:{folder}")
    found = load(f"hf:{folder}?label=fine&image=img", "test", root, size=16)
    assert found.class_names == CLASSES and len(found) == 4
    with pytest.raises(InputError, match="no column of images"):
        load(f"hf:{folder}?image=picture", "test", root)
    with pytest.raises(InputError, match="option 'lable'"):
        load(f"hf:{folder}?lable=x", "test", root)
    with pytest.raises(InputError, match="cannot read 'hf:.*nowhere'"):
        load(f"hf:{tmp_path}/nowhere", "test", root)


def test_without_the_library_the_error_names_it(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(InputError, match="pip install datasets"):
        load("hf:uoft-cs/cifar10", "test", tmp_path)
