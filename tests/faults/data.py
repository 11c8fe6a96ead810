"""Data that cannot be read, sets that are not there, requests that make no sense."""

from __future__ import annotations

import os
import pickle
import struct
from pathlib import Path

import numpy as np
from PIL import Image

from faults import Fault
from ood.config import InputError
from ood.data import Augment, Preprocess, auxiliary, load, load_benchmark, open_set

PRETRAIN = "classifier_pretraining.py"
LITTLE = ("-arch", "small_cnn", "-epochs", "1", "-out_dir", "{tmp}/out")
LEFT_BEHIND = ("out", "**/*.tmp", ".decoded/*.npy", "data/.decoded/*.npy")


def fault(name, action, *words, prepare=None, left_behind=LEFT_BEHIND):
    return Fault(
        name,
        action=action,
        error=InputError,
        words=words,
        prepare=prepare,
        left_behind=left_behind,
    )


def loads(name, split="test", **options):
    return lambda folder: load(name.replace("{tmp}", str(folder)), split, folder, **options)


def picture(path: Path, size=(8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)


def photos(folder: Path) -> None:
    for name in ("cat", "dog"):
        picture(folder / "photos" / name / "0.png")


def photos_and(*damage):
    def prepare(folder):
        photos(folder)
        for change in damage:
            change(folder / "photos")

    return prepare


def writes(path, content):
    """A function that writes bytes or text into a file below the folder."""

    def write(folder: Path) -> None:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        data = content if isinstance(content, bytes) else content.encode()
        (folder / path).write_bytes(data)

    return write


def array(path, values):
    def write(folder: Path) -> None:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        np.save(folder / path, values)

    return write


def arrays(path, **values):
    return lambda folder: np.savez(folder / path, **values)


def idx(images: bytes, labels: bytes):
    def write(folder: Path) -> None:
        raw = folder / "MNIST" / "raw"
        raw.mkdir(parents=True)
        (raw / "t10k-images-idx3-ubyte").write_bytes(images)
        (raw / "t10k-labels-idx1-ubyte").write_bytes(labels)

    return write


def benchmark(content):
    def read(folder: Path):
        (folder / "b.json").write_text(content, encoding="utf-8")
        return load_benchmark(folder / "b.json")

    return read


IMAGES = np.zeros((3, 8, 8, 3), np.uint8)
DIGITS = struct.pack(">BBBBIII", 0, 0, 8, 3, 2, 4, 4) + bytes(32)
LABELS = struct.pack(">BBBBI", 0, 0, 8, 1, 2) + bytes(2)

REQUESTS = [
    fault("unknown set", loads("iSNU"), "iSNU", "iSUN"),
    fault("name without end", loads("a" * 5000), "unknown data set"),
    fault("path without end", loads("./" + "a" * 5000), "is no path", "too long"),
    fault("home of nobody", loads("~no-such-user/photos"), "is no path"),
    fault("root in the home of nobody", lambda _: load("iSUN", "test", "~no-such-user"), "no path"),
    fault("empty name", loads(""), "unknown data set"),
    fault("unknown split", loads("mnist5k", "tset"), "tset", "test"),
    fault("split of another set", loads("omniglot", "train"), "no split", "test"),
    fault("size 0", loads("mnist5k", size=0), "must be positive"),
    fault("size below 0", loads("mnist5k", size=-1), "must be positive"),
    fault("size beyond the memory", loads("mnist5k", size=100_000), "GB of memory", "smaller size"),
    fault("size beyond any number", loads("mnist5k", size=10**200), "GB of memory"),
    fault("resize beyond the memory", loads("mnist5k", size=8, resize=10**6), "GB of memory"),
    fault("noise beyond the memory", loads("uniform", size=10**6), "GB of memory"),
    fault("crop larger than the image", loads("mnist5k", size=28, resize=20), "smaller than size"),
    fault("two channels", loads("mnist5k", channels=2), "channels=2"),
    fault("size that is a word", loads("mnist5k", size="8"), "one whole number"),
    fault("size and a half", loads("uniform", size=1.5), "one whole number"),
    fault("size that is true", loads("uniform", size=True), "one whole number"),
    fault("resize of one side", loads("mnist5k", resize=(3,)), "one or two"),
    fault("resize of three sides", loads("mnist5k", resize=(3, 3, 3)), "one or two"),
    fault("limit and a half", loads("uniform", limit=1.5), "whole number"),
    fault("limit 0", loads("mnist5k", limit=0), "at least 1"),
    fault("limit below 0", loads("mnist5k", limit=-5), "at least 1"),
    fault("base of another set", loads("mnist5k", base="mnist"), "no meaning"),
    fault("unknown base", loads("mnist_noise", base="minst"), "minst"),
    fault("lists of another set", loads("iSUN", lists=("x.txt",)), "no meaning"),
    fault("set that is not there", loads("iSUN"), "is not in", "add -download"),
    fault("set of a form", loads("imagenet", download=True), "cannot fetch", "register"),
    fault("withdrawn set", loads("tinyimages", "train", download=True), "withdrawn"),
    fault("part that is none", loads("cifar10c:fgo"), "fgo", "fog"),
    fault("severity 6", loads("cifar10c:fog:6"), "1 to 5"),
    fault("part of a whole set", loads("iSUN:fog"), "no parts"),
]
FOLDERS = [
    fault("folder that is not there", loads("{tmp}/none"), "no folder"),
    fault("empty folder", loads("{tmp}/e"), "no images", prepare=lambda f: (f / "e").mkdir()),
    fault(
        "images beside classes",
        loads("{tmp}/photos"),
        "beside folders",
        prepare=photos_and(lambda folder: picture(folder / "0.png")),
    ),
    *(
        fault(
            f"image that is {kind}",
            loads("{tmp}/photos", size=8),
            "cannot decode",
            "z.png",
            prepare=photos_and(writes("dog/z.png", content)),
        )
        for kind, content in (
            ("empty", b""),
            ("text", "not an image"),
            ("cut", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"),
            ("JPEG in name only", b"\xff\xd8\xff\xe0broken"),
        )
    ),
    fault(
        "images of two shapes",
        loads("{tmp}/photos"),
        "give a size",
        prepare=photos_and(lambda folder: picture(folder / "dog" / "z.png", (9, 8))),
    ),
    fault(
        "broken link",
        loads("{tmp}/photos"),
        "cannot read",
        "z.png",
        prepare=photos_and(lambda folder: (folder / "dog" / "z.png").symlink_to("nowhere")),
    ),
    fault(
        "pipe that is called an image",
        loads("{tmp}/photos"),
        "no regular file",
        "a.png",
        prepare=photos_and(lambda folder: os.mkfifo(folder / "cat" / "a.png")),
    ),
    fault(
        "link to a pipe in a list",
        loads("{tmp}/l.txt"),
        "neither in",
        prepare=lambda folder: [
            os.mkfifo(folder / "pipe"),
            (folder / "a.png").symlink_to(folder / "pipe"),
            writes("l.txt", "a.png 0\n")(folder),
        ],
    ),
    fault(
        "splits of other classes",
        loads("{tmp}/set", "train"),
        "same class folders",
        prepare=lambda f: [picture(f / "set" / p / "0.png") for p in ("train/a", "test/b")],
    ),
    fault(
        "folder without that split",
        loads("{tmp}/set"),
        "none for test",
        prepare=lambda f: picture(f / "set/train/a/0.png"),
    ),
    fault(
        "classes of another set",
        loads("cifar10"),
        "has 1 class folders",
        prepare=lambda f: picture(f / "cifar10/test/cat/0.png"),
    ),
]
FILES = [
    fault("array that is not there", loads("{tmp}/none.npy"), "no file"),
    fault("array of floats", loads("{tmp}/a.npy"), "float64", prepare=array("a.npy", IMAGES / 1)),
    fault("array of no image", loads("{tmp}/a.npy"), "(0, ", prepare=array("a.npy", IMAGES[:0])),
    fault("array that is text", loads("{tmp}/a.npy"), "no array", prepare=writes("a.npy", "x")),
    fault(
        "array of objects",
        loads("{tmp}/a.npy"),
        "no array",
        prepare=array("a.npy", np.array([object()])),
    ),
    fault(
        "labels of another number",
        loads("{tmp}/a.npz"),
        "3 images and 2 labels",
        prepare=arrays("a.npz", images=IMAGES, labels=np.zeros(2, int)),
    ),
    fault(
        "labels that are no numbers",
        loads("{tmp}/a.npz"),
        "one whole number",
        prepare=arrays("a.npz", images=IMAGES, labels=np.zeros(3)),
    ),
    fault(
        "classes and outliers in one file",
        loads("{tmp}/a.npz"),
        "file of their own",
        prepare=arrays("a.npz", images=IMAGES, labels=np.array([0, -1, 1])),
    ),
    fault("list that is not there", loads("{tmp}/none.txt"), "no file"),
    fault("empty list", loads("{tmp}/l.txt"), "is empty", prepare=writes("l.txt", "# nothing\n")),
    fault("list in Latin-1", loads("{tmp}/l.txt"), "cannot read", prepare=writes("l.txt", b"\xe9")),
    fault(
        "list that climbs",
        loads("{tmp}/l.txt"),
        "line 1",
        "does not stay below",
        prepare=writes("l.txt", "../x.png 1\n"),
    ),
    fault(
        "list of what is not there",
        loads("{tmp}/l.txt"),
        "neither in",
        prepare=writes("l.txt", "gone.png 1\n"),
    ),
    fault(
        "idx file that is short",
        loads("mnist"),
        "should have 48 bytes",
        "-replace",
        prepare=idx(DIGITS[:-1], LABELS),
    ),
    fault("idx file of labels only", loads("mnist"), "no idx file", prepare=idx(LABELS, LABELS)),
    fault(
        "idx label beyond the classes",
        loads("mnist"),
        "label 77",
        prepare=idx(DIGITS, LABELS[:-1] + b"M"),
    ),
    fault(
        "SVHN file that is none",
        loads("svhn"),
        "no SVHN file",
        prepare=writes("svhn/test_32x32.mat", b"MATLAB 5.0 MAT-file" + bytes(200)),
    ),
    fault(
        "CIFAR folder without its files",
        loads("cifar10"),
        "is not there",
        "add -download",
        prepare=lambda folder: (folder / "cifar-10-batches-py").mkdir(),
    ),
    fault(
        "class splits that would run code",
        loads("ssb_cub"),
        "not data",
        prepare=lambda folder: [
            writes("ssb_splits/cub_osr_splits.pkl", pickle.dumps(print))(folder),
            (folder / "CUB_200_2011").mkdir(),
        ],
    ),
]
BENCHMARKS = [
    fault("unknown benchmark", lambda _: load_benchmark("dice_cifar1"), "dice_cifar10"),
    fault("benchmark without end", lambda _: load_benchmark("a" * 5000), "is no path"),
    fault("unknown protocol", lambda _: load_benchmark("demo", "papre"), "paper"),
    fault("benchmark that is no JSON", benchmark("{"), "not valid JSON"),
    fault("benchmark that is a list", benchmark("[]"), "must hold a JSON object"),
    fault("benchmark nested without end", benchmark("[" * 100_000), "not valid JSON"),
    fault("benchmark with a long number", benchmark(f'{{"size": {"9" * 5000}}}'), "not valid JSON"),
    fault("benchmark without entries", benchmark('{"id_dataset": "mnist5k"}'), "'entries'"),
    fault(
        "benchmark with a set twice",
        benchmark(
            '{"id_dataset": "mnist5k", "entries": [{"dataset": "letters"}, {"dataset": "letters"}]}'
        ),
        "twice",
    ),
    fault(
        "benchmark with an unknown key",
        benchmark('{"id_dataset": "mnist5k", "entries": [{"dataset": "letters", "sise": 3}]}'),
        "sise",
    ),
]
OTHERS = [
    fault(
        "more outliers than there are",
        lambda f: auxiliary.draw(str(f / "a.npy"), 10**6, 0, f, size=8, channels=3),
        "at most 3",
        prepare=array("a.npy", IMAGES),
    ),
    fault(
        "no outliers",
        lambda f: auxiliary.draw(str(f / "a.npy"), 0, 0, f, size=8, channels=3),
        "at least 1",
        prepare=array("a.npy", IMAGES),
    ),
    fault(
        "pool without a name",
        lambda f: auxiliary.load_outliers("letters+", f, size=28, channels=1),
        "empty name",
    ),
    fault(
        "pool of an array that is not there",
        lambda f: auxiliary.draw("none.npy", 1, 0, f, size=28, channels=1),
        "no file",
    ),
    fault("normalisation by a word", lambda _: Preprocess("x", "y"), "one number per channel"),
    fault("normalisation by words", lambda _: Preprocess(["x"], [1]), "one number per channel"),
    fault("normalisation by nothing", lambda _: Preprocess(None, None), "one number per channel"),
    fault("normalisation by nan", lambda _: Preprocess([float("nan")], [1]), "one number"),
    fault("normalisation by std 0", lambda _: Preprocess([0], [0]), "must be positive"),
    fault("normalisation of two lengths", lambda _: Preprocess([0, 0], [1]), "2 and 1"),
    fault("unknown augmentation", lambda _: Augment("crop_flap"), "crop_flip"),
    fault("augmentation of a whole", lambda _: Augment(scale=(0.5, 2)), "shares of the area"),
    fault(
        "open-set split without known classes",
        lambda _: open_set.dynamic([0, 1, 2], uuc_val=2, uuc_test=2),
        "must stay known",
    ),
    fault("open-set split by halves", lambda _: open_set.dynamic([0, 1], train=2), "add up to 1"),
    fault("class known twice", lambda _: open_set.fixed([0, 1, 2], [1, 1]), "must be different"),
]
COMMANDS = [
    Fault(
        "training with images beyond the memory",
        PRETRAIN,
        ("-dataset", "mnist5k", "-size", "100000", *LITTLE),
        words=("100000x100000", "GB of memory", "smaller size"),
        left_behind=LEFT_BEHIND,
    ),
    Fault(
        "training on a set that is not there",
        PRETRAIN,
        ("-dataset", "tinyimagenet", "-data_dir", "{tmp}", *LITTLE),
        words=("is not in", "add -download"),
        left_behind=LEFT_BEHIND,
    ),
    Fault(
        "downloading what only a person gets",
        PRETRAIN,
        ("-dataset", "imagenet", "-download", "-data_dir", "{tmp}", *LITTLE),
        words=("the download cannot fetch all of it", "register"),
        left_behind=LEFT_BEHIND,
    ),
]
ROWS = REQUESTS + FOLDERS + FILES + BENCHMARKS + OTHERS + COMMANDS
