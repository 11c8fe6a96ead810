"""ood.compat.augment: PixMix as a data set, COCO's annotations, objects pasted into scenes."""

import hashlib
import inspect
import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from download_toys import Server
from PIL import Image
from torch.utils.data import DataLoader, Dataset, TensorDataset

import ood.compat.augment
from ood.compat.augment import COCO, InsertCOCO, PixMixDataset
from ood.compat.augment.img import cocopaste, pixmix
from ood.config import InputError


class Pictures(Dataset):
    """PIL images of noise with a label."""

    def __init__(self, count, size=(16, 16), mode="RGB", seed=0):
        chance = np.random.default_rng(seed)
        shape = (count, size[1], size[0], *([3] if mode == "RGB" else []))
        self.arrays = chance.integers(0, 256, shape, dtype=np.uint8)

    def __len__(self):
        return len(self.arrays)

    def __getitem__(self, index):
        return Image.fromarray(self.arrays[index]), index


# --- signatures


def test_signatures_are_pytorch_oods():
    peer = pytest.importorskip("pytorch_ood.augment.img", reason="pytorch-ood is not installed")
    from pytorch_ood.augment.img import cocopaste as their_paste
    from pytorch_ood.augment.img import pixmix as their_pixmix

    pairs = [(getattr(ood.compat.augment, n), getattr(peer, n)) for n in ood.compat.augment.__all__]
    for module, theirs in ((cocopaste, their_paste), (pixmix, their_pixmix)):
        pairs += [(getattr(module, n), getattr(theirs, n)) for n in module.__all__]
    compared = 0
    for ours, theirs in pairs:
        methods = [""]
        if inspect.isclass(theirs):
            own = inspect.getmembers(theirs, inspect.isfunction)
            methods = [n for n, _ in own if n[0] != "_" or n in ("__init__", "__call__")]
        for name in methods:
            mine, other = (getattr(t, name) if name else t for t in (ours, theirs))
            mine, other = (inspect.signature(f).parameters for f in (mine, other))
            assert list(mine) == list(other), (theirs, name)
            for key, parameter in other.items():
                default = parameter.default
                if isinstance(default, list):  # () here
                    default = ()
                if "loadAnns" not in name and "loadImgs" not in name:  # a type there
                    assert mine[key].default == default, (theirs, name, key)
            compared += 1
    assert compared > 15


# --- PixMix


def test_pixmix_is_a_data_set():
    data = PixMixDataset(
        Pictures(6), Pictures(3, (40, 24), seed=1), mean=(0.5,) * 3, std=(0.5,) * 3
    )
    torch.manual_seed(0)
    first = [data[i] for i in range(6)]
    torch.manual_seed(0)
    again = [data[i] for i in range(6)]
    assert len(data) == 6 and [label for _, label in first] == list(range(6))
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(first, again))
    for image, _ in first:
        assert image.shape == (3, 16, 16) and image.dtype == torch.float32
        assert -1 <= image.min() and image.max() <= 1
    assert any(not torch.equal(data[0][0], first[0][0]) for _ in range(5))


def test_pixmix_without_rounds_is_the_image_or_one_operation():
    images = Pictures(4)
    data = PixMixDataset(images, Pictures(2), k=0, mean=(0.0,) * 3)
    plain = torch.from_numpy(images.arrays.transpose(0, 3, 1, 2)) / 255
    same = [torch.equal(data[i % 4][0], plain[i % 4]) for i in range(60)]
    assert 15 < sum(same) < 45  # half of them
    shifted = PixMixDataset(images, Pictures(2), k=0)  # the defaults of mean and std are ones
    assert min(float(shifted[0][0].min()) for _ in range(5)) < 0


def test_pixmix_of_grey_images_and_tensors_in_workers():
    grey = PixMixDataset(Pictures(4, mode="L"), Pictures(3, (9, 30)))
    assert grey[0][0].shape == (1, 16, 16)
    tensors = TensorDataset(torch.rand(5, 3, 12, 12), torch.arange(5))
    data = PixMixDataset(tensors, Pictures(3), mean=(0.0,) * 3)
    images, labels = next(iter(DataLoader(data, batch_size=5, num_workers=1)))
    assert images.shape == (5, 3, 12, 12) and labels.tolist() == list(range(5))
    assert 0 <= images.min() and images.max() <= 1


def test_one_operation_on_a_pil_image():
    data, image = PixMixDataset(Pictures(1), Pictures(1)), Pictures(1, (20, 12), "L")[0][0]
    changed = [data.augment_input(image, 5) for _ in range(8)]
    assert all(c.size == (20, 12) and c.mode == "L" for c in changed)
    assert any(np.any(np.asarray(c) != np.asarray(image)) for c in changed)


def test_pixmix_checks_its_parameters():
    for bad in (dict(k=-1), dict(beta=0), dict(aug_severity=20)):
        with pytest.raises(InputError):
            PixMixDataset(Pictures(2), Pictures(2), **bad)


def test_single_mixings():
    image, other = torch.rand(3, 8, 8), torch.rand(3, 8, 8)
    torch.manual_seed(1)
    a, b = pixmix.get_ab(3)
    assert (0 <= a <= 1 and 0 <= b <= 1) or (1 <= a <= 2 and -1 <= b <= 0)
    torch.manual_seed(1)
    assert torch.allclose(
        pixmix.add(image, other, 3), (a * (2 * image - 1) + b * (2 * other - 1) + 1) / 2
    )
    torch.manual_seed(1)
    assert torch.allclose(
        pixmix.multiply(image, other, 3), (2 * image) ** a * (2 * other) ** b / 2, atol=1e-5
    )


# --- COCO

CATEGORIES = [
    {"id": 1, "name": "cat", "supercategory": "animal"},
    {"id": 2, "name": "dog", "supercategory": "animal"},
    {"id": 7, "name": "train", "supercategory": "vehicle"},
]
SIDE = 60


def polygon(left, top, right, bottom):
    return [[left, top, right, top, right, bottom, left, bottom]]


def annotations():
    """Five images: a cat, a dog and a cat, a train, one that is too small, one with nothing."""
    boxes = [(1, 1), (2, 2), (2, 1), (3, 7), (4, 1)]
    images = [{"id": i, "height": SIDE if i != 4 else 20, "width": SIDE + 20} for i in range(1, 6)]
    return {
        "images": images,
        "categories": CATEGORIES,
        "annotations": [
            {
                "id": 10 + number,
                "image_id": image,
                "category_id": kind,
                "area": 100 * (number + 1),
                "iscrowd": 0,
                "segmentation": polygon(10.4, 5, 40 + number, 16.7),
            }
            for number, (image, kind) in enumerate(boxes)
        ],
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """COCO's folders with small images: red inside the first object's polygon, blue outside."""
    root = tmp_path_factory.mktemp("coco")
    (root / "train2017").mkdir()
    (root / "annotations").mkdir()
    content = annotations()
    (root / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
    for image in content["images"]:
        pixels = np.zeros((image["height"], image["width"], 3), np.uint8)
        pixels[...] = 0, 0, 250
        for annotation in content["annotations"][::-1]:
            if annotation["image_id"] == image["id"]:
                size = (image["width"], image["height"])
                mask = cocopaste.create_mask_from_segmentation(annotation["segmentation"], size)
                pixels[mask == 1] = 250, 0, 0
        path = root / "train2017" / f"{image['id']:012d}.jpg"
        Image.fromarray(pixels).save(path, quality=100, subsampling=0)
    return root


def test_annotations_answer_as_pytorch_oods(folder):
    file = folder / "annotations" / "instances_train2017.json"
    ours = COCO(file)
    theirs = [COCO(), ours]
    peer = pytest.importorskip("pytorch_ood.augment.img", reason="pytorch-ood is not installed")
    theirs = peer.COCO(str(file))
    for method, calls in {
        "getAnnIds": [
            {},
            {"imgIds": 2},
            {"imgIds": [2, 3], "catIds": 1},
            {"imgIds": [1, 2], "areaRng": [150, 250]},
        ],
        "getCatIds": [
            {},
            {"catNms": ["cat", "train"]},
            {"supNms": ["animal"]},
            {"catNms": ["cat"], "catIds": [2]},
        ],
        "getImgIds": [{}, {"catIds": 1}, {"catIds": [1, 7]}, {"imgIds": [1, 3], "catIds": [7]}],
        "loadAnns": [{"ids": 11}, {"ids": [10, 12]}],
        "loadImgs": [{"ids": 2}, {"ids": [3, 1]}],
    }.items():
        for call in calls:
            found, expected = (getattr(c, method)(**call) for c in (ours, theirs))
            expected = sorted(expected) if method == "getImgIds" else expected
            assert found == expected, (method, call)
    for annotation in ours.anns.values():
        masks = [c.annToMask(annotation, (SIDE, SIDE + 20)) for c in (ours, theirs)]
        assert masks[0].dtype == np.uint8 and np.array_equal(*masks)


def test_an_empty_index():
    assert COCO().getCatIds() == [] and COCO().getImgIds() == [] and COCO().loadAnns() == []


def test_run_lengths_go_down_the_columns():
    mask = np.zeros((4, 3), np.uint8)
    mask[1:3, 0], mask[0, 2] = 1, 1
    rle = {"counts": [1, 2, 5, 1, 3], "size": [4, 3]}
    assert np.array_equal(cocopaste.rle_decode(rle, (4, 3)), mask)
    assert np.array_equal(cocopaste.create_mask_from_segmentation(rle, (3, 4)), mask)
    content = annotations()
    masks = cocopaste.generate_masks(content, 2)
    assert len(masks) == 2 and masks[0].shape == (SIDE, SIDE + 20) and masks[0].max() == 1
    for bad in (
        {"counts": [1, 2], "size": [4, 3]},
        {"counts": [12], "size": [3, 4]},
        {"counts": "abc", "size": [4, 3]},
        "polygon",
        [[1, 2, 3, 4, 5]],
        [["a", "b", "c", "d"]],
    ):
        with pytest.raises(ValueError):
            cocopaste.create_mask_from_segmentation(bad, (3, 4))
    with pytest.raises(InputError, match="no image 99"):
        cocopaste.generate_masks(content, 99)


# --- objects in scenes


def scene(width=120, height=90):
    mask = torch.full((height, width), 3)
    mask[:, :9] = 255
    return Image.new("RGB", (width, height), (0, 200, 0)), mask


def inserted(folder, *, seed=0, **options):
    insert = InsertCOCO(str(folder), min_img_size=40, **{"p": 1, **options})
    torch.manual_seed(seed)
    return insert(*scene()), insert


def test_what_is_pasted_is_marked(folder):
    plain, given = scene()
    for seed in range(5):
        (image, mask), _ = inserted(folder, seed=seed, n=2)
        ood = mask.numpy() == -1
        changed = (np.asarray(image) != np.asarray(plain)).any(2)
        assert mask.dtype == torch.int64 and 20 < ood.sum()
        # Only the rim, half transparent, may change without being marked.
        assert changed[ood].all() and (changed & ~ood).sum() < 0.35 * ood.sum()
        assert torch.equal(mask[~torch.from_numpy(ood)], given[~torch.from_numpy(ood)])
        red, _, blue = (np.asarray(image)[ood].mean(0)).tolist()
        assert red > 180 and blue < 60  # the object, not what lies around it in COCO
        assert not ood[:10].any() and not ood[-10:].any() and not ood[:, :10].any()
    assert np.array_equal(np.asarray(plain), np.asarray(scene()[0]))


def test_seeds_and_probability(folder):
    (image, mask), insert = inserted(folder, seed=3)
    (again, same), _ = inserted(folder, seed=3)
    (_, other), _ = inserted(folder, seed=4)
    assert torch.equal(mask, same) and np.array_equal(np.asarray(image), np.asarray(again))
    assert not torch.equal(mask, other)
    plain, given = scene()
    never = InsertCOCO(str(folder), p=0, min_img_size=40)
    assert all(never(plain, given) == (plain, given) for _ in range(20))
    half = InsertCOCO(str(folder), p=0.5, min_img_size=40, ood_mask_value=-7)
    changed = sum(bool((half(*scene())[1] == -7).any()) for _ in range(40))
    assert 8 < changed < 32


def test_which_images_are_used(folder):
    def ids(**options):
        return InsertCOCO(str(folder), **{"min_img_size": 40, **options}).usable_image_ids

    assert ids() == [1, 2, 3] and ids(min_img_size=10) == [1, 2, 3, 4]
    assert ids(exclude_classes=["cat"]) == [3] and ids(exclude_classes=["train", "dog"]) == [1]
    with pytest.raises(InputError, match="no image"):
        ids(exclude_classes=["cat", "train"])
    with pytest.raises(InputError, match="did you mean 'train'"):
        ids(exclude_classes=["trian"])
    with pytest.raises(InputError, match="bddAnomaly"):
        ids(exclude_classes="bddAnomally")


def test_a_large_object_fits_a_small_scene(folder):
    insert = InsertCOCO(str(folder), p=1, upscale=9.0, min_img_size=40)
    image, mask = insert(Image.new("L", (24, 18)), np.zeros((18, 24), np.uint8))
    assert image.size == (24, 18) and (mask == -1).any()


def test_bad_calls(folder, tmp_path):
    for bad in (dict(n=0), dict(p=1.5), dict(year=2014), dict(annotation_per_image=0)):
        with pytest.raises(AssertionError):
            InsertCOCO(str(folder), **bad)
    with pytest.raises(FileNotFoundError, match="train2017.*download=True"):
        InsertCOCO(str(tmp_path))
    with pytest.raises(InputError, match="a mask"):
        InsertCOCO(str(folder), p=1, min_img_size=40)(Image.new("RGB", (30, 20)), torch.zeros(9, 9))


def test_download(folder, tmp_path, monkeypatch):
    server, archives = Server(), []
    try:
        for archive in cocopaste.OBJECTS.archives:
            files = sorted((folder / archive.place).iterdir())
            packed = tmp_path / archive.name
            with zipfile.ZipFile(packed, "w") as made:
                for file in files:
                    made.write(file, f"{archive.place}/{file.name}")
            body = packed.read_bytes()
            server.files[f"/{archive.name}"] = body
            archives.append(
                replace(
                    archive,
                    urls=(f"{server.address}/{archive.name}",),
                    md5=hashlib.md5(body).hexdigest(),
                    sha256=hashlib.sha256(body).hexdigest(),
                    bytes=len(body),
                )
            )
        monkeypatch.setattr(
            cocopaste, "OBJECTS", replace(cocopaste.OBJECTS, archives=tuple(archives))
        )
        insert = InsertCOCO(str(tmp_path / "coco"), p=1, min_img_size=40, download=True)
        assert insert.usable_image_ids == [1, 2, 3] and (insert(*scene())[1] == -1).any()
        seen = len(server.seen)
        InsertCOCO(str(tmp_path / "coco"), min_img_size=40, download=True)
        assert len(server.seen) == seen == 2
    finally:
        server.close()
