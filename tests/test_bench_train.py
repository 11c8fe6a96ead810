"""scripts/bench_train.py on a few generated images in the layout of CIFAR-10 as JPEG files."""

import numpy as np
from PIL import Image

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def test_bench_train_times_every_loop(tmp_path, run_script):
    for part in ("train", "test"):
        for label, name in enumerate(CLASSES):
            (tmp_path / "cifar10" / part / name).mkdir(parents=True)
            for number in range(4):
                pixels = (
                    np.random.RandomState(10 * number + label)
                    .randint(0, 255, (32, 32, 3))
                    .astype(np.uint8)
                )
                Image.fromarray(pixels).save(tmp_path / "cifar10" / part / name / f"{number}.jpg")
    loops = ("plain", "reference", "ours bf16")
    done = run_script(
        "scripts/bench_train.py",
        "-archs",
        "small_cnn",
        "-loops",
        *loops,
        "-batch_size",
        8,
        "-steps",
        2,
        "-rounds",
        1,
        "-peak",
        1,
        "-data_dir",
        tmp_path,
        env={"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "small_cnn, medians of 1 rounds of 2 steps of 8 images" in done.stdout
    for loop in loops:
        (line,) = (x for x in lines if x.strip().startswith(loop + " "))
        assert "images/s" in line and "loading" in line and "% of the peak" in line


def test_bench_train_refuses_unknown_loops(tmp_path, run_script):
    done = run_script("scripts/bench_train.py", "-loops", "fastest", "-data_dir", tmp_path)
    assert done.returncode == 2 and "fastest" in done.stderr and "ours bf16" in done.stderr
