"""The benchmarks of the detectors, at tiny size: they run, compare and say what they measured."""
import re


def test_bench_memory_fits_every_detector_in_chunks(run_script, tmp_path):
    done = run_script("scripts/bench_memory.py", "-images", 9000, "-features", 96, "-classes", 12, "-folder", tmp_path, env={"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    rows = dict(re.findall(r"^(\w+) +fit .* peak +(\d+) MiB", done.stdout, re.M))
    assert {"mds", "rmds", "vim", "dice", "react", "she", "neco", "pnml", "knn", "gmm", "openmax", "optfs"} <= set(rows)
    assert max(map(int, rows.values())) < 4096 and not list(tmp_path.iterdir()), "the arrays are removed"


def test_bench_eval_gives_the_same_scores_as_pytorch_ood(run_script, tmp_path):
    import pytest
    pytest.importorskip("pytorch_ood")
    done = run_script("scripts/bench_eval.py", "-images", 120, "-rounds", 1, "-data_dir", tmp_path, env={"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    compared = re.findall(r"^  AUROC (\S+) +ours ([\d.]+) +pytorch-ood ([\d.]+) *(.*)$", done.stdout, re.M)
    assert len(compared) == 24
    assert not [name for name, *_, note in compared if note == "differs"]
    assert re.search(r"24 detectors.*\n  bare forward.*\n  ours.*\n  pytorch-ood, cache on.*\n  pytorch-ood, by hand", done.stdout)
