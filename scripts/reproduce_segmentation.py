"""Find letters among handwritten digits, pixel by pixel, with and without pasted outliers.

    python3 scripts/reproduce_segmentation.py                 # one seed: 4 min. on one core
    python3 scripts/reproduce_segmentation.py -seeds 0 1 2
    python3 scripts/reproduce_segmentation.py -train 100 -test 20 -epochs 2     # a quick look

Writes a set of scenes with the layout of a real one: WORK_DIR/scenes/{train,outliers,test}/
{images,masks}. A scene is a piece of a photograph of scikit-learn with MNIST digits on it, whose
classes the network learns. In `test` there are printed letters too: they are the outliers. The
scenes of `outliers` are those of `train` with letters of other fonts pasted in.

For each seed it trains two small U-Nets: with cross-entropy on `train`, and with outlier exposure
on `outliers`, which is what Chan et al. (ICCV 2021, arXiv 2012.06575) do with objects of COCO.
scripts/segment_ood.py evaluates both. Weights are kept in WORK_DIR. -record writes
docs/data/segmentation_scenes.json and docs/figures/segmentation_scenes.png.

This should give: AUROC of msp, maxlogit and entropy higher with pasted outliers than without, for
every seed. The classes of the digits are learned less well with them.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

import ood

ood.catch_interrupts()  # before torch loads

import numpy as np
import torch
from PIL import Image

import models
from models import segmentation as networks
from ood import cli, losses
from ood.data import IGNORED, Preprocess, load, load_masked
from ood.data.masked import OWN_OUTLIER
from ood.evaluation import measurements
from ood.files import replacing, write_text
from ood.training.batches import mix

HEIGHT, WIDTH = 64, 96
CLASSES = ("background", *map(str, range(10)))
LOSSES = {"cross_entropy": "train", "outlier_exposure": "outliers"}
DETECTORS = ("msp", "maxlogit", "energy", "entropy")
SHOWN = {
    "auroc": "AUROC, higher is better",
    "aupr_out": "AP (AUPR-Out), higher is better",
    "fpr95_ood_positive": "FPR95 (OOD positive), lower is better",
}
DEFAULTS = {"seeds": [0], "train": 800, "test": 200, "epochs": 8, "width": 10}
CLEAR, FAINT = 128, 24  # coverage from which a pixel is an object's; below FAINT it is background
DUSK = 0.55  # brightness of the photographs, so that the glyphs stand out
TRAIN_SHARE = 0.6  # of the width of a photograph; the test scenes lie to the right of it
PREPROCESS = Preprocess((0.5,) * 3, (0.25,) * 3)
RATE, BATCH = 0.005, 8
BACKGROUND = 0.05  # share of the background's pixels that a step looks at


def read_flags():
    parser = cli.Parser("Letters among digits, pixel by pixel, with and without pasted outliers.")
    many = {"nargs": "+", "metavar": "SEED"}
    parser.flag("-seeds", type=int, help="of weights", default=DEFAULTS["seeds"], **many)
    parser.flag("-train", type=int, help="training scenes", default=DEFAULTS["train"])
    parser.flag("-test", type=int, help="test scenes", default=DEFAULTS["test"])
    parser.flag("-epochs", type=int, help="of each training", default=DEFAULTS["epochs"])
    parser.flag("-width", type=int, help="of the U-Net", default=DEFAULTS["width"])
    parser.flag(
        "-work_dir", help="where scenes and weights go", default="./results/reproduce_segmentation"
    )
    measurements.add_flag(parser)
    return parser.parse_args()


def main() -> None:
    flags = read_flags()
    work = Path(flags.work_dir)
    write_scenes(work / "scenes", flags)
    found: dict[tuple, list[float]] = {}  # (loss, detector, group, metric) -> a value per seed
    facts: dict[str, list[dict]] = {loss: [] for loss in LOSSES}
    for seed in flags.seeds:
        for loss, split in LOSSES.items():
            weights = work / f"{loss}_{seed}.pt"
            train(load_masked(f"{work}/scenes", split), loss, seed, flags, weights)
            out = work / f"{loss}_{seed}"
            measurements.run_script(
                "scripts/segment_ood.py",
                datasets=f"{work}/scenes",
                checkpoint=weights,
                detectors=DETECTORS,
                overlays=3,
                device="cpu",
                out_dir=out,
            )
            result = json.loads((out / "metrics.json").read_text("utf-8"))
            facts[loss].append(result["datasets"]["scenes"])
            for row in result["rows"]:
                for metric in SHOWN:
                    key = (loss, row["detector"], row["group"], metric)
                    found.setdefault(key, []).append(row[metric])
    report(flags, found, facts, work)


# ---- the scenes ------------------------------------------------------------------------------


def write_scenes(folder: Path, flags) -> None:
    """Write the scenes and masks of all splits, unless these very scenes are there."""
    facts = json.dumps({"train": flags.train, "test": flags.test, "size": [HEIGHT, WIDTH]})
    note = folder / "scenes.json"
    if note.is_file() and note.read_text("utf-8") == facts:
        return
    shutil.rmtree(folder, ignore_errors=True)
    for split, count in (("train", flags.train), ("outliers", flags.train), ("test", flags.test)):
        part = "test" if split == "test" else "train"
        photographs = [piece(name, part) for name in ("china.jpg", "flower.jpg")]
        digits, letters = load("mnist5k", part), load("letters", part)
        for number in range(count):
            chance = np.random.default_rng([("train", "test").index(part), number])
            image, mask = background(photographs, chance)
            for row in chance.integers(len(digits), size=int(chance.integers(2, 5))):
                paste(image, mask, digits.images[row, 0], 1 + int(digits.labels[row]), chance)
            if split != "train":
                for row in chance.integers(len(letters), size=int(chance.integers(1, 3))):
                    paste(image, mask, letters.images[row, 0], OWN_OUTLIER, chance)
            for kind, array in (("images", image), ("masks", mask)):
                path = folder / split / kind / f"{number:04d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
    write_text(folder / "classes.txt", "\n".join(CLASSES) + "\n")
    write_text(note, facts)


def piece(name: str, part: str) -> np.ndarray:
    """Read one of scikit-learn's photographs: its left part for train, its right part for test."""
    import sklearn

    path = Path(sklearn.__file__).parent / "datasets" / "images" / name
    photograph = np.asarray(Image.open(path).convert("RGB"))
    border = int(TRAIN_SHARE * photograph.shape[1])
    return photograph[:, :border] if part == "train" else photograph[:, border:]


def background(photographs: list[np.ndarray], chance) -> tuple[np.ndarray, np.ndarray]:
    """Cut a random piece of a photograph, and reduce it: (image (H, W, 3), mask (H, W) of 0)."""
    photograph = photographs[int(chance.integers(len(photographs)))]
    zoom = chance.uniform(1, 2.4)
    height, width = int(HEIGHT * zoom), int(WIDTH * zoom)
    top, left = (int(chance.integers(n - m + 1)) for n, m in zip(photograph.shape, (height, width)))
    cut = Image.fromarray(photograph[top : top + height, left : left + width])
    image = np.array(cut.resize((WIDTH, HEIGHT), Image.Resampling.BOX))
    return (DUSK * image).astype(np.uint8), np.zeros((HEIGHT, WIDTH), np.uint8)


def paste(image: np.ndarray, mask: np.ndarray, glyph: np.ndarray, label: int, chance) -> None:
    """Paint a glyph (28, 28) at a random place, size and colour, where nothing is yet.

    Its rim, which is neither, is ignored in the mask.
    """
    side = int(chance.integers(26, 39))
    cover = np.array(Image.fromarray(glyph).resize((side, side), Image.Resampling.BILINEAR))
    colour = chance.integers(170, 256, 3)  # like ink that shines
    for _ in range(20):
        top, left = int(chance.integers(HEIGHT - side + 1)), int(chance.integers(WIDTH - side + 1))
        place = np.s_[top : top + side, left : left + side]
        if not mask[place][cover >= FAINT].any():
            break
    else:
        return
    ground = image[place].astype(float)
    alpha = np.where(cover >= FAINT, cover, 0)[..., None] / 255
    image[place] = np.rint((1 - alpha) * ground + alpha * colour)
    mask[place][cover >= FAINT] = IGNORED
    mask[place][cover >= CLEAR] = label


# ---- training --------------------------------------------------------------------------------


def train(scenes, loss: str, seed: int, flags, path: Path) -> None:
    """Train a U-Net with one of our losses on the rows of pixels that are not ignored.

    Weights that are there already and come from the same scenes and recipe are kept.
    """
    recipe = {"scenes": scenes.digest, "epochs": flags.epochs, "width": flags.width}
    if path.is_file() and models.checkpoints.read(path).meta.get("recipe") == recipe:
        return
    cli.set_seed(seed)
    torch.set_num_threads(1)
    pairs = [scenes[row] for row in range(len(scenes))]
    images = torch.stack([image for image, _ in pairs])
    masks = torch.stack([mask for _, mask in pairs])
    network = networks.build("small_unet", len(CLASSES), width=flags.width)
    objective = losses.create(loss)
    optimizer = torch.optim.Adam(network.parameters(), RATE)
    steps = flags.epochs * -(-len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for epoch in range(1, flags.epochs + 1):
        order = torch.Generator().manual_seed(mix(seed, epoch))
        total = 0.0
        for rows in torch.randperm(len(images), generator=order).split(BATCH):
            logits, mask = network(PREPROCESS(images[rows])), masks[rows]  # (B, K, H, W)
            counted = (mask != IGNORED) & ((mask != 0) | (torch.rand(mask.shape) < BACKGROUND))
            value = objective(logits.movedim(1, -1)[counted], mask[counted])
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            schedule.step()
            total += len(rows) * value.item()
        cli.log(f"{loss}, seed {seed}: epoch {epoch}/{flags.epochs} loss={total / len(images):.4f}")
    stored = {"mean": list(PREPROCESS.mean), "std": list(PREPROCESS.std)}
    networks.save(path, network.eval(), preprocess=stored, recipe=recipe)


# ---- the report ------------------------------------------------------------------------------


def report(flags, found: dict, facts: dict, work: Path) -> None:
    """Print the tables; with -record, write the record and the figure."""

    def cells(detector: str, metric: str) -> list[str]:
        pairs = [(loss, group) for group in ("pixels", "images") for loss in LOSSES]
        return [measurements.spread(found[loss, detector, g, metric]) for loss, g in pairs]

    names = {"pixels": "all pixels", "images": "mean over images"}
    columns = [f"{loss}, {name}" for name in names.values() for loss in LOSSES]
    tables = [
        {
            "caption": f"{title}, in %: mean ± standard deviation over the seeds",
            "columns": ["detector", *columns],
            "rows": [[detector, *cells(detector, metric)] for detector in DETECTORS],
        }
        for metric, title in SHOWN.items()
    ]
    measurements.print_tables(tables)
    if not flags.record:
        return
    name = "segmentation_scenes"
    source = work / f"outlier_exposure_{flags.seeds[0]}" / "figures" / "scenes.png"
    shrink(source, measurements.FOLDER / "figures" / f"{name}.png")
    measurements.write(
        name,
        page="results",
        order=800,
        title="Letters among digits, pixel by pixel",
        text=describe(flags, found, facts, f"figures/{name}.png"),
        tables=tables,
        seeds=flags.seeds,
        device=cli.describe_device(torch.device("cpu")),
        command=" ".join(["python3 scripts/reproduce_segmentation.py", *changed(flags)]),
    )


def describe(flags, found: dict, facts: dict, figure: str) -> list[str]:
    """Write the paragraphs of the record."""
    pixels = facts["cross_entropy"][0]["pixels"]

    def seeds_above(detector: str) -> str:
        plain, exposed = (found[loss, detector, "pixels", "auroc"] for loss in LOSSES)
        higher = sum(b > a for a, b in zip(plain, exposed))
        return f"{detector} {higher} of {len(flags.seeds)}"

    classes = "; ".join(
        f"{loss} {measurements.spread([f['accuracy'] for f in facts[loss]])}, "
        f"{measurements.spread([f['mean_iou'] for f in facts[loss]])}"
        for loss in LOSSES
    )
    return [
        f"Scenes of {WIDTH} x {HEIGHT} pixels: pieces of scikit-learn's two photographs with MNIST "
        "digits on them. The classes are the background and the ten digits; printed letters are "
        f"the outliers. {flags.train} training scenes from the left of the photographs, "
        f"{flags.test} test scenes from the right, with other digits and letters of other fonts: "
        f"{pixels['id']:,} ID and {pixels['ood']:,} OOD pixels. The rims of the glyphs are ignored "
        f"({pixels['ignored']:,}). One small U-Net (width {flags.width}, {flags.epochs} epochs) "
        "per loss and seed.",
        "cross_entropy is trained without outliers. outlier_exposure is trained on the same scenes "
        "with letters pasted in, whose softmax it makes flat: what Chan et al. (ICCV 2021) do with "
        "objects of COCO.",
        f"Accuracy and mean IoU of the classes on ID pixels, in %: {classes}. Seeds in which the "
        "AUROC of all pixels is higher with pasted outliers: "
        f"{', '.join(map(seeds_above, DETECTORS))}. All metrics are exact. This is a stand-in that "
        "needs no download, not one of the papers' benchmarks.",
        f"The first test scenes, the classes predicted after outlier exposure (seed "
        f"{flags.seeds[0]}), and the detectors' scores on top of the image, from dark (like ID) to "
        "bright (like OOD). The outlines are those of the letters; the numbers are the AUROC of "
        "the pixels of the image, in %:",
        f"![Scores of four detectors on three test scenes]({figure})",
    ]


def changed(flags) -> list[str]:
    """The flags that are not at their defaults, as words of a command."""
    words = []
    for name, usual in DEFAULTS.items():
        value = getattr(flags, name)
        if value != usual:
            words += [f"-{name}", *map(str, value if isinstance(value, list) else [value])]
    return words


def shrink(source: Path, target: Path) -> None:
    """Copy a figure with 256 colours, which takes a third of the bytes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as temporary:
        Image.open(source).convert("RGB").quantize(256).save(temporary, format="png", optimize=True)


if __name__ == "__main__":
    cli.run(main, (models.ModelError, models.CheckpointError))
