"""The benchmarks of ood.compat have pytorch-ood's sets: names, order, lengths, labels, images."""

from __future__ import annotations

import shutil

import benchmark_toys as toys
import pytest
import torch
from torch.utils.data import ConcatDataset
from torchvision import transforms

from ood.compat import benchmark as ours
from ood.compat.benchmark.store import data_digest
from ood.data.benchmark import load_benchmark

theirs = pytest.importorskip("pytorch_ood.benchmark")
SEEN = transforms.Compose([transforms.Resize((4, 4)), transforms.ToTensor()])
NAMES = [name for name in ours.__all__ if name != "Benchmark"]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The folder in which pytorch-ood keeps OpenOOD's lists."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub/openood_benchmark_imglist/benchmark_imglist"


def labels(dataset):
    return [int(label) for _, label in dataset]


def check_same(mine, peer, pixels=True):
    """Two benchmarks have the same sets in the same order, with the same labels and images."""
    assert mine.ood_names == peer.ood_names
    kinds = [{}, {"known": False}, {"unknown": False}]
    for options in kinds:
        sets, expected = mine.test_sets(**options), peer.test_sets(**options)
        assert len(sets) == len(expected) == (1 if "unknown" in options else len(mine.ood_names))
        for one, other in zip(sets, expected):
            compare(one, other, pixels)
    compare(mine.train_set(), peer.train_set(), pixels)
    with pytest.raises(ValueError):
        mine.test_sets(known=False, unknown=False)


def compare(one, other, pixels):
    assert len(one) == len(other) > 0
    assert labels(one) == labels(other)
    if pixels:
        assert all(torch.equal(mine[0], peer[0]) for mine, peer in zip(one, other))


@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100", "ImageNet200", "ImageNet", "ImageNet1K"])
def test_openood(name, hub, tmp_path):
    name = f"{name}_OpenOOD"
    folder = getattr(theirs, name)._subdir
    root = tmp_path / "data"
    toys.openood(hub, root, folder)
    peer = getattr(theirs, name)(root, SEEN, download=False)
    mine = getattr(ours, name)(root, SEEN, download=False)  # images and lists where theirs are
    check_same(mine, peer)
    compare(mine.validation_set(), peer.validation_set(), True)
    assert mine.near_ood_names == peer._near_ood and mine.far_ood_names == peer._far_ood
    for part in ("train_in", "val_in", "test_in", "val_ood"):
        compare(getattr(mine, part), getattr(peer, part), True)

    own = tmp_path / "own"  # and in our own layout
    shutil.move(hub, own / "benchmark_imglist")
    images = "images_classic" if folder.startswith("cifar") else "images_largescale"
    shutil.copytree(root, own / images)
    check_same(getattr(ours, name)(own, SEEN, download=False), peer)


@pytest.mark.parametrize("name", ["ImageNet_OpenOOD", "ImageNet200_OpenOOD"])
def test_imagenet_of_another_folder(name, hub, tmp_path):
    root, elsewhere = tmp_path / "data", tmp_path / "ILSVRC"
    toys.openood(hub, root, getattr(theirs, name)._subdir)
    peer = getattr(theirs, name)(root, SEEN, download=False)
    expected = labels(peer.test_sets()[0]), labels(peer.train_set())
    shutil.move(root / "imagenet_1k", elsewhere)
    for n, file in enumerate(sorted((elsewhere / "val").iterdir())):  # sorted into classes
        place = elsewhere / "val" / f"n{n % 2}"
        place.mkdir(exist_ok=True)
        file.rename(place / file.name)
    with pytest.raises(RuntimeError, match="is not in"):
        getattr(ours, name)(root, SEEN, download=False)
    mine = getattr(ours, name)(root, SEEN, image_net_root=elsewhere, download=False)
    assert (labels(mine.test_sets()[0]), labels(mine.train_set())) == expected


def test_the_first_version_of_openood(tmp_path):
    root, elsewhere = tmp_path / "data", tmp_path / "ILSVRC"
    toys.picture(tmp_path / "a.JPEG", 0)
    for n in range(1000):
        (elsewhere / "val" / f"n{n:08d}").mkdir(parents=True)
        shutil.copy(tmp_path / "a.JPEG", elsewhere / "val" / f"n{n:08d}")
    make = lambda: ours.ImageNet_OpenOOD(
        root, SEEN, image_net_root=elsewhere, download=False, version="1.0"
    )
    with pytest.raises(RuntimeError, match="'imagenet_o' .test. is not in"):
        make()  # the images of ImageNet are found
    with pytest.raises(ValueError, match="there are 1.0 and 1.5"):
        ours.ImageNet_OpenOOD(root, SEEN, version="2")


@pytest.mark.parametrize("name", ["MIDOG", "PhaKIR", "OASIS3"])
def test_openmibood(name, tmp_path):
    kind = getattr(theirs, f"{name}_OpenMIBOOD")
    lists = [kind._train_imglist, kind._test_imglist, *kind._ood_imglists]
    toys.openmibood(tmp_path, kind._dataset_subdir, lists, tmp_path)
    peer = kind(tmp_path, SEEN, download=False)
    mine = getattr(ours, kind.__name__)(tmp_path, SEEN, download=False)
    check_same(mine, peer)
    for group in ("cs_id_names", "near_ood_names", "far_ood_names"):
        assert getattr(mine, group) == getattr(peer, group)
    grey = lambda path: path.rsplit("/", 1)[-1]
    seen = getattr(ours, kind.__name__)(tmp_path, str.upper, loader=grey, download=False)
    assert seen.test_in[0][0] == f"{kind._test_imglist[:-4]}_0.png".upper()


@pytest.mark.parametrize("name", ["CUB_SSB", "Aircraft_SSB", "StanfordCars_SSB"])
def test_ssb(name, tmp_path):
    toys.fine_grained(tmp_path)
    mine = getattr(ours, name)(tmp_path, SEEN)
    check_same(mine, getattr(theirs, name)(tmp_path, SEEN))
    assert mine.near_ood_names == ["Hard"] and mine.far_ood_names == ["Easy"]


@pytest.mark.parametrize("name", ["cub", "aircraft", "scars"])
def test_ssb_splits(name, tmp_path):
    from pytorch_ood.benchmark.img import ssb as peer

    from ood.compat.benchmark.img.ssb import load_ssb_splits

    toys.fine_grained(tmp_path)
    assert load_ssb_splits(name, tmp_path) == peer.load_ssb_splits(name, tmp_path)
    with pytest.raises(ValueError, match="sets: cub, aircraft, scars"):
        load_ssb_splits("cars", tmp_path)


@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100"])
def test_odin(name, tmp_path, monkeypatch):
    import torchvision
    from pytorch_ood.dataset.img import LSUNCrop, LSUNResize, TinyImageNetCrop, TinyImageNetResize

    toys.odin(tmp_path)
    toys.cifar(tmp_path, getattr(torchvision.datasets, name), monkeypatch)
    for kind in (TinyImageNetCrop, TinyImageNetResize, LSUNCrop, LSUNResize):
        monkeypatch.setattr(kind, "_check_integrity", lambda self, *_: True)
    peer = getattr(theirs, f"{name}_ODIN")(tmp_path, SEEN)
    mine = getattr(ours, f"{name}_ODIN")(tmp_path, SEEN)
    assert mine.ood_names == peer.ood_names
    assert mine.train_in[1][1] == peer.train_in[1][1] == 1
    compare(mine.train_set(), peer.train_set(), True)
    compare(mine.test_in, peer.test_in, True)
    pairs = list(zip(mine.test_oods, peer.test_oods, strict=True))
    for one, other in pairs[:4]:
        compare(one, other, True)
    for one, other in pairs[4:]:  # the draws are others, see ood.compat.dataset.img.noise
        assert len(one) == len(other) == 1000 and one[999][1] == other[999][1] == -1
        assert one[0][0].shape == other[0][0].shape
    assert [len(both) for both in mine.test_sets()] == [len(both) for both in peer.test_sets()]


# --- the twins in configs/benchmarks

ROWS = {  # classes whose rows are no attribute: {name in results: row in our registry}
    "TinyImageNetCrop": "Imagenet",
    "TinyImageNetResize": "Imagenet_resize",
    "LSUNResize": "LSUN_resize",
    "LSUNCrop": "LSUN",
    "UniformNoise": "uniform",
    "Uniform": "uniform",
    "GaussianNoise": "gaussian",
    "Gaussian": "gaussian",
}


def parts(kind):
    """(name, row, list) of each OOD set of a class, and (row, {split: list}) of the ID set."""
    if "OpenOOD" in kind.__name__:
        sets = [(p.name, p.row, f"{kind.folder}/{p.list}") for p in (*kind.near, *kind.far)]
        lists = {s: f"{kind.folder}/{s}_{kind.word}.txt" for s in ("train", "val", "test")}
        return sets, kind.known, lists
    if "SSB" in kind.__name__:
        return [(n, f"{kind.json}_{n.lower()}", None) for n in kind.ood_names], kind.json, {}
    if "OpenMIBOOD" in kind.__name__:
        names = [*kind.cs_id_names, *kind.near_ood_names, *kind.far_ood_names]
        return [(name, name, None) for name in names], kind.known, {}
    return [(name, ROWS[name], None) for name in kind.ood_names], kind.known, {}


@pytest.mark.parametrize("name", NAMES)
def test_the_json_names_the_same_sets_in_the_same_order(name):
    kind = getattr(ours, name)
    sets, known, lists = parts(kind)
    twin = load_benchmark(kind.json)
    assert [(entry.dataset, entry.list) for entry in twin.entries] == [row[1:] for row in sets]
    assert known == (twin.id_files or twin.id_dataset) and lists == twin.id_lists
    assert twin.skip_first == 0 and twin.first_fraction is None
    groups = {part: "near" for part in kind.near_ood_names}
    groups |= {part: "far" for part in kind.far_ood_names}
    assert [entry.group for entry in twin.entries] == [groups.get(row[0]) for row in sets]
    noise = [1000 if row[1] in ("uniform", "gaussian") else None for row in sets]
    assert [entry.limit for entry in twin.entries] == noise


def test_the_json_of_the_first_version():
    from ood.compat.benchmark.img.openood import FIRST_VERSION

    twin = load_benchmark("openood_v1_imagenet")
    assert [entry.dataset for entry in twin.entries] == list(FIRST_VERSION.values())


def test_names_are_those_of_pytorch_ood():
    assert set(ours.__all__) == set(theirs.__all__)
    assert ours.ImageNet1K_OpenOOD is ours.ImageNet_OpenOOD
    for name in NAMES:
        assert getattr(ours, name).info.paper.title == getattr(theirs, name).info.paper.title


def test_missing_sets_are_named(hub, tmp_path):
    with pytest.raises(
        RuntimeError, match="'cifar10_openood' .test. is not in .*benchmark_imglist"
    ):
        ours.CIFAR10_OpenOOD(tmp_path, SEEN, download=False)
    with pytest.raises(RuntimeError, match="'ssb_cub' .train. is not in"):
        ours.CUB_SSB(tmp_path, SEEN)


def test_transforms_get_rgb(hub, tmp_path):
    toys.openood(hub, tmp_path, "cifar10")
    made = ours.CIFAR10_OpenOOD(tmp_path, lambda image: image.mode, download=False)
    joined = ConcatDataset(made.test_sets(known=False))
    assert {mode for mode, _ in joined} == {"RGB"}


def test_the_readme_of_pytorch_ood_and_its_cache(hub, tmp_path):
    """Its second example: one call per detector, cached in files, with workers."""
    from ood.compat.detector import EnergyBased, MaxSoftmax

    class Counting(torch.nn.Flatten):
        def forward(self, x):
            seen.append(len(x))
            return super().forward(x)

    root, seen = tmp_path / "data", []
    toys.openood(hub, root, "cifar10")
    model = torch.nn.Sequential(Counting(), torch.nn.Linear(48, 10))
    benchmark = ours.CIFAR10_OpenOOD(root=root, transform=SEEN)
    results = []
    for name, detector in {"MSP": MaxSoftmax(model), "Energy": EnergyBased(model)}.items():
        res = benchmark.evaluate(
            detector,
            loader_kwargs={"batch_size": 4, "num_workers": 1},
            cache=True,
            cache_dir=tmp_path / "cache",
            cache_key="cifar10",
        )
        for row in res:
            row.update({"Detector": name})
        results += res
    sets = [benchmark.test_in, *benchmark.test_oods]
    assert sum(seen) == sum(map(len, sets))  # the second call forwards nothing
    assert [row["Dataset"] for row in results] == 2 * benchmark.ood_names
    again = ours.CIFAR10_OpenOOD(root=root, transform=SEEN)
    again.evaluate(EnergyBased(model), {"batch_size": 4}, cache_dir=tmp_path / "cache")
    assert sum(seen) == 2 * sum(map(len, sets))  # another cache_key


def test_the_digest_of_a_set_covers_files_labels_and_transform(hub, tmp_path):
    toys.openood(hub, tmp_path, "cifar10")
    make = lambda seen: ours.CIFAR10_OpenOOD(tmp_path, seen, download=False).test_in
    digest = data_digest(make(SEEN))
    assert digest == data_digest(make(SEEN)) is not None
    larger = transforms.Compose([transforms.Resize((5, 4)), transforms.ToTensor()])
    assert data_digest(make(larger)) not in (digest, None)
    unknown = (lambda image: image, transforms.RandomCrop(3), transforms.ColorJitter())
    assert {data_digest(make(seen)) for seen in unknown} == {None}
    one = make(SEEN)
    assert one.labels is not None and data_digest(one) == digest  # nothing that was kept counts
    file = hub / "cifar10" / "test_cifar10.txt"
    file.write_text(file.read_text().replace(" 3\n", " 4\n"))
    assert data_digest(make(SEEN)) not in (digest, None)
    changed = data_digest(make(SEEN))
    toys.picture(one.found.folder / one.found.paths[0], 99)
    assert data_digest(make(SEEN)) not in (changed, None)
