"""train_all.py: the loop, what it skips, resumes and survives, folds on several devices."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from ood.config import InputError
from ood.training import runs

ROOT = Path(__file__).resolve().parent.parent
CONFIG = {
    "method": "leaveout",
    "id_dataset": "mnist5k",
    "arch": "small_cnn",
    "model_args": {"width": 4},
    "epochs": 1,
    "batch_size": 50,
    "lr": 0.05,
    "schedule": "constant",
    "augment": "none",
    "validation_dataset": "noise",
    "validation_split": "test",
    "validation_id": "train",
    "validation_images": 40,
    "benchmark": "demo",
    "detectors": [],
}


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("train_all_script", ROOT / "train_all.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def call(script, monkeypatch, capsys):
    """call('-dry_run') -> (exit code, lines on stdout, text on stderr) of the script's main."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["train_all.py", *map(str, words)])
        code = script.main()
        captured = capsys.readouterr()
        return code, captured.out.splitlines(), captured.err

    return run


@pytest.fixture
def tiny(tmp_path):
    """Flags of five folds that train in a second or two."""
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(CONFIG))
    return ["-config", path, "-limit", 150, "-checkpoints_dir", tmp_path / "runs", "-device", "cpu"]


def folder(tmp_path, fold):
    return tmp_path / "runs" / f"mnist5k_fold_{fold}_small_cnn_checkpoint"


def test_dry_run_prints_the_twenty_commands_in_the_repositorys_order(call, tmp_path):
    code, lines, _ = call("-dry_run", "-checkpoints_dir", tmp_path)
    assert code == 0 and len(lines) == 20 and all(line.endswith("# new") for line in lines)
    assert all("ood_training.py -config" in line and "-resume" in line for line in lines)
    order = [
        (dataset, word, fold)
        for word in ("dense", "wide")
        for dataset in ("cifar10", "cifar100")
        for fold in range(1, 6)
    ]
    for line, (dataset, word, fold) in zip(lines, order):
        network = {"dense": "densenet", "wide": "wideresnet"}[word]
        assert (
            f"configs/{dataset}_{network}_leaveout.json -fold {fold} " in line
            and f"{dataset}_fold_{fold}_{word}_checkpoint" in line
        )
    assert not any(tmp_path.iterdir())


def test_flags_narrow_the_loop_and_reach_the_commands(call, tmp_path):
    _, lines, _ = call(
        "--dry_run",
        "--in-dataset",
        "cifar100",
        "-arch",
        "wideresnet",
        "-folds",
        2,
        4,
        "-epochs",
        3,
        "-devices",
        "cuda:1",
        "-checkpoints_dir",
        tmp_path,
    )
    assert len(lines) == 2 and all(
        "-epochs 3" in line and "-device cuda:1" in line and "cifar100_wideresnet" in line
        for line in lines
    )
    _, lines, _ = call(
        "-dry_run",
        "-gpu",
        "2,3",
        "-arch",
        "densenet",
        "-in_dataset",
        "cifar10",
        "-download",
        "-data_dir",
        "/d",
    )
    assert len(lines) == 5 and all(
        "-device cuda:2" in line and "-download" in line and "-data_dir /d" in line
        for line in lines
    )


def test_trains_all_folds_then_skips_them(call, tiny, tmp_path):
    code, lines, err = call(*tiny)
    assert code == 0 and not err
    assert [line for line in lines if line.startswith("[")] == [
        f"[{f}/5] mnist5k_fold_{f}_small_cnn: trained, {folder(tmp_path, f)}" for f in range(1, 6)
    ]
    assert sum(line.startswith("epoch 1/1") for line in lines) == 5
    assert all(
        {"config.json", "log.jsonl", "best.pt", "last.pt"}
        <= {p.name for p in folder(tmp_path, f).iterdir()}
        for f in range(1, 6)
    )
    times = {f: (folder(tmp_path, f) / "best.pt").stat().st_mtime_ns for f in range(1, 6)}
    code, lines, _ = call(*tiny)
    assert (
        code == 0
        and lines[-1].startswith("5 models: 0 trained")
        and "5 finished before, 0 failed" in lines[-1]
    )
    assert times == {f: (folder(tmp_path, f) / "best.pt").stat().st_mtime_ns for f in range(1, 6)}
    code, lines, _ = call(*tiny, "-epochs", 2, "-folds", 1)  # a longer training continues the run
    assert code == 0 and "epoch 2/2" in "\n".join(lines) and "epoch 1/2" not in "\n".join(lines)
    assert [r["epoch"] for r in runs.Run(folder(tmp_path, 1)).records() if "lr" in r] == [1, 2]


def test_resumes_what_broke_off_and_goes_on_after_a_failure(call, tiny, tmp_path):
    assert call(*tiny, "-folds", 1, 2, 3)[0] == 0
    broken = runs.Run(folder(tmp_path, 1))  # killed between the last epoch and its end
    kept = [json.dumps(r) for r in broken.records() if r.get("event") != "end"]
    (broken.folder / "log.jsonl").write_text("\n".join(kept) + "\n")
    for name in ("log.jsonl", "best.pt", "last.pt"):  # killed before the first epoch ended
        (folder(tmp_path, 2) / name).unlink()
    (folder(tmp_path, 3) / "log.jsonl").write_text("")
    whole = (folder(tmp_path, 3) / "last.pt").read_bytes()
    (folder(tmp_path, 3) / "last.pt").write_bytes(whole[: len(whole) // 2])
    code, lines, err = call(*tiny)
    assert code == 1
    assert [line.split(":")[0] for line in lines if ": trained" in line] == [
        f"[{n}/5] mnist5k_fold_{f}_small_cnn" for n, f in ((1, 1), (2, 2), (4, 4), (5, 5))
    ]
    assert err.count("\n") == 1 and "failed: mnist5k_fold_3_small_cnn:" in err and "last.pt" in err
    assert "5 models: 4 trained" in lines[-1] and "0 finished before, 1 failed" in lines[-1]
    _, lines, _ = call("-dry_run", *tiny)
    assert [line.rpartition("# ")[2] for line in lines] == [
        "finished",
        "finished",
        "begun",
        "finished",
        "finished",
    ]


def test_a_folder_of_other_settings_is_a_failure_and_the_repositorys_weights_are_finished(
    call, tiny, tmp_path
):
    assert call(*tiny, "-folds", 1)[0] == 0
    code, _, err = call(*tiny, "-folds", 1, "-seed", 5)
    assert code == 1 and "seed" in err
    folder(tmp_path, 2).mkdir()
    torch.save({}, folder(tmp_path, 2) / "model_best.pth.tar")
    code, lines, _ = call(*tiny, "-folds", 2)
    assert code == 0 and "finished, skipped" in lines[0]


def test_several_devices_train_the_same_networks(call, tiny, tmp_path):
    """Folds in processes of their own give what they give one after the other."""
    assert call(*tiny, "-folds", 1)[0] == 0
    apart = [tmp_path / "apart" if word == tmp_path / "runs" else word for word in tiny[:-2]]
    code, lines, err = call(*apart, "-devices", "cpu", "cpu", "-folds", 1, 2)
    assert code == 0, "\n".join(lines) + err
    assert sorted(
        line.partition("] ")[2].partition(":")[0] for line in lines if line.startswith("[")
    ) == ["mnist5k_fold_1_small_cnn", "mnist5k_fold_2_small_cnn"]
    assert any(line.startswith("cpu mnist5k_fold_2_small_cnn | epoch 1/1") for line in lines)
    here, there = (
        runs.Run(root / folder(tmp_path, 1).name).load("best.pt")["state_dict"]
        for root in (tmp_path / "runs", tmp_path / "apart")
    )
    assert all(
        torch.allclose(here[key].float(), there[key].float(), atol=1e-2) for key in here
    )  # other threads, other rounding


def test_a_failing_process_is_named(call, tiny, tmp_path):
    folder(tmp_path, 1).mkdir(parents=True)
    (folder(tmp_path, 1) / "config.json").write_text("{}")
    assert call(*tiny, "-folds", 1)[0] == 1
    (folder(tmp_path, 1) / "config.json").unlink()
    code, _, err = call(
        *tiny[:-2],
        "-devices",
        "cpu",
        "cpu",
        "-folds",
        1,
        "-data_dir",
        tmp_path,
        "-config",
        str(Path(tiny[1])),
        "-lr",
        "1e30",
    )
    assert code == 1 and "mnist5k_fold_1_small_cnn: exit code 1" in err


@pytest.mark.parametrize(
    "words, message",
    [
        (["-config", "nowhere.json"], "no config file"),
        (["-config", "configs/dice_cifar10.json"], "no config of leave-out"),
        (["-folds", "7"], "fold 7"),
        (["-folds", "1", "1"], "twice"),
        (["-devices", "cuda:99"], "cuda:99"),
        (["-gpu", "0", "-devices", "cpu"], "not both"),
    ],
)
def test_bad_input_is_refused_before_training(call, words, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(InputError, match=message):
        call(*words)


def test_script_runs_from_another_folder(call_script, tmp_path):
    found = call_script(
        "train_all.py", "-dry_run", "-in-dataset", "cifar10", "-arch", "densenet", cwd=tmp_path
    )
    assert found.returncode == 0 and found.stdout.count("# new") == 5 and not found.stderr
    assert call_script("train_all.py", "-in_datset", "cifar10", cwd=tmp_path).returncode == 2
