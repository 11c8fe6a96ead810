"""Two processes under torchrun against one: the same losses, weights, outputs and scores; a killed process; what a user reads."""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import distributed_worker as worker
import pytest
import torch
from conftest import ROOT
from torch.distributed.run import get_args_parser

from ood import distributed
from ood.config import InputError
from ood.training import runs

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
TINY = ("-device", "cpu", "-limit", 120, "-batch_size", 8, "-width", 4, "-schedule", "constant")
CLOSE = dict(rtol=1e-9, atol=1e-11)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """As under torchrun: the number of threads decides the order of sums."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """(what one process finds, [what rank 0 finds, what rank 1 finds]), by case."""
    folder = tmp_path_factory.mktemp("two")
    done = torchrun(ROOT / "tests" / "distributed_worker.py", folder)
    alone = {
        name: case(tmp_path_factory.mktemp("one") / name) for name, case in worker.CASES.items()
    }
    assert done.returncode == 0, done.stderr[-3000:]
    return alone, [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


def torchrun(script, *arguments, timeout=600):
    return subprocess.run(
        [*TORCHRUN, str(script), *map(str, arguments)],
        env=ENVIRONMENT,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def numbers(record: dict) -> dict:
    return {
        k: v
        for k, v in record.items()
        if isinstance(v, (int, float)) and k not in ("seconds", "images_per_s")
    }


# ---- training ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ("plain", "batchnorm", "outlier_exposure", "center"))
def test_two_processes_train_as_one_with_the_doubled_batch(both, case):
    """Without BatchNorm, and with the synchronised one: every number of every epoch and every weight; with outliers, with learned centres."""
    one, (first, second) = both[0][case], [found[case] for found in both[1]]
    assert same(first["weights"], second["weights"])
    for key, tensor in one["weights"].items():
        torch.testing.assert_close(first["weights"][key], tensor, **CLOSE)
    assert len(first["records"]) == len(one["records"]) == 3
    for ours, theirs in zip(first["records"], one["records"]):
        assert (
            numbers(ours) == pytest.approx(numbers(theirs), rel=1e-6)
            and ours["best"] == theirs["best"]
        )
    assert one["records"][0]["loss"] != one["records"][2]["loss"]


def test_queues_of_virtual_outliers_are_those_of_one_process(both):
    one, found = both[0]["queues"], [found["queues"] for found in both[1]]
    assert all(torch.equal(two[key], one[key]) for two in found for key in one) and one[
        "seen"
    ].tolist() == [14, 6, 6]


def test_processes_that_would_resume_differently_stop(both):
    """As rank 0 finds it: in another process last.pt is missing, or of another epoch."""
    assert both[0]["disagree"] == ["", ""]
    for found in both[1]:
        missing, other = found["disagree"]
        assert (
            "process 1 does not see" in missing
            and "last.pt" in missing
            and "different epochs" in other
            and "(2, 1)" in other
        )


def test_what_rank_0_sends_lies_on_the_cpu(monkeypatch):
    """A tensor of cuda:0 would be made on cuda:0 by every process."""
    moved = []
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: moved.append(self) or self)
    sent = distributed._on_cpu(
        {"a": [torch.ones(1, requires_grad=True)], "b": (torch.zeros(2), 3), "c": "x", "d": None}
    )
    assert (
        len(moved) == 2
        and not sent["a"][0].requires_grad
        and sent["b"][1:] == (3,)
        and (sent["c"], sent["d"]) == ("x", None)
    )


def test_resumed_run_of_two_processes_equals_an_undisturbed_one(both):
    first, second = (found["resumed"] for found in both[1])
    assert (
        same(first["straight"]["weights"], first["resumed"]["weights"])
        and first["straight"]["records"] == first["resumed"]["records"]
    )
    assert same(first["resumed"]["weights"], second["resumed"]["weights"])
    assert not same(
        first["straight"]["weights"], both[0]["resumed"]["straight"]["weights"]
    )  # dropout masks of their own


@pytest.mark.parametrize(
    "case, steps",
    (("remainder", [17, 16]), ("uneven", [16, 16, 5]), ("few", [3]), ("in_order", [8, 8, 4])),
)
def test_every_image_once_in_the_order_of_one_process(both, case, steps):
    shares = [found[case] for found in both[1]]
    count = sum(steps)
    whole = [a + b for a, b in zip(*(share["steps"] for share in shares))]
    assert (
        [len(step) for step in whole] == sorted(steps, reverse=True)
        if case != "remainder"
        else sorted(map(len, whole)) == [16, 17]
    )
    assert all(abs(len(a) - len(b)) <= 1 for a, b in zip(*(share["steps"] for share in shares)))
    assert [share["length"] for share in shares] == [len(steps)] * 2
    assert sum(whole, []) == sum(both[0][case]["steps"], []) and sorted(sum(whole, [])) == list(
        range(count)
    )


def test_one_image_is_measured_by_one_process(both):
    assert [found["one"]["steps"] for found in both[1]] == [[[0]], []] or [
        found["one"]["steps"] for found in both[1]
    ] == [[], [[0]]]


def test_fewer_training_images_than_processes_are_refused(monkeypatch):
    monkeypatch.setattr(distributed, "world", lambda: 4)
    with pytest.raises(InputError, match="3 training .* for 4 processes"):
        distributed.spans(3, 8)


@pytest.mark.parametrize("world", (1, 2, 3, 5))
def test_spans_and_shares_cover_everything_once(monkeypatch, world):
    monkeypatch.setattr(distributed, "world", lambda: world)
    for count in (5, 16, 17, 31, 32, 33, 100):
        for size in (1, 4, 8):
            steps, rows = [], []
            for rank in range(world):
                monkeypatch.setattr(distributed, "rank", lambda: rank)
                steps.append(distributed.spans(count, size))
                rows += range(count)[distributed.share_of_rows(count, size)]
                assert len(steps[-1]) == distributed.steps(count, size) and all(
                    s.stop > s.start for s in steps[-1]
                )
            covered = [
                n for step in zip(*steps) for span in step for n in range(span.start, span.stop)
            ]
            assert covered == rows == list(range(count))
            assert all(span.last - span.first == world * size for span in steps[0][:-1])


# ---- methods -----------------------------------------------------------------------------------------------------------------


def test_leave_out_fold(both):
    """BatchNorm sees half of each step and the hinge is of each process's means: close, not equal; both processes agree exactly."""
    one, (first, second) = both[0]["leaveout"], [found["leaveout"] for found in both[1]]
    assert same(first["weights"], second["weights"])
    for ours, theirs in zip(first["records"], one["records"], strict=True):
        assert (
            ours["loss"] == pytest.approx(theirs["loss"], rel=0.2) and 0 <= ours["valid_auroc"] <= 1
        )


def test_vmdls_shares_its_batches_out(both):
    """Loss, noise, augmentation and BatchNorm are of the whole batch: both processes agree exactly, one alone to rounding in float32."""
    one, (first, second) = both[0]["vmdls"], [found["vmdls"] for found in both[1]]
    assert (
        same(first["weights"], second["weights"])
        and torch.equal(first["means"], second["means"])
        and first["files"] == one["files"]
    )
    for ours, theirs in zip(first["records"], one["records"], strict=True):
        assert ours["margin"] == theirs["margin"] and ours["loss"] == pytest.approx(
            theirs["loss"], rel=1e-3
        )
    torch.testing.assert_close(first["means"], one["means"], rtol=1e-2, atol=1e-3)


def test_heatmap_decoder(both):
    one, (first, second) = both[0]["heatmap"], [found["heatmap"] for found in both[1]]
    assert (
        same(first["weights"], second["weights"])
        and torch.equal(first["scores"], second["scores"])
        and len(first["scores"]) == 90
    )
    assert [r["epoch"] for r in first["records"]] == [1, 2]
    assert first["records"][0]["loss"] == pytest.approx(one["records"][0]["loss"], rel=0.1)


# ---- evaluation --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ("outputs", "cached"))
def test_outputs_equal_those_of_one_process_to_the_bit(both, case):
    for found in both[1]:
        for count, arrays in both[0][case].items():
            assert (
                all(torch.equal(a, b) for a, b in zip(arrays, found[case][count], strict=True))
                and len(arrays[0]) == count
            )


def test_values_rows_and_errors_cross_over(both):
    for rank, found in enumerate(both[1]):
        talk = found["talk"]
        assert (
            talk["said"] == "no such thing"
            and talk["first"] == 0
            and talk["who"] == [0, 1]
            and talk["turn"] == rank
        )
        assert talk["rows"].tolist() == [[0, 1], [2, 3], [4, 5], [10, 11], [12, 13]] and talk[
            "of_one"
        ].tolist() == [[True], [True]]
        assert talk["alone"] == (1, [rank]) and talk["total"].tolist() == [2.0, 1.0]


def test_eval_ood_writes_the_same_metrics(tmp_path, call_script):
    run = tmp_path / "run"
    assert (
        call_script("classifier_pretraining.py", *TINY, "-epochs", 1, "-out_dir", run).returncode
        == 0
    )
    arguments = (
        "-checkpoint",
        run / "best.pt",
        "-limit",
        150,
        "-device",
        "cpu",
        "-detectors",
        "msp",
        "knn",
        "odin",
        "mahalanobis",
        "-datasets",
        "letters",
    )
    (tmp_path / "c.json").write_text(
        '{"id_dataset": "mnist5k", "arch": "small_cnn", "width": 4, "num_classes": 10, "benchmark": "demo"}'
    )
    arguments = ("-config", tmp_path / "c.json", *arguments)
    alone = call_script(
        "eval_ood.py", *arguments, "-cache_dir", tmp_path / "cache1", "-out_dir", tmp_path / "one"
    )
    assert alone.returncode == 0, alone.stderr
    two = torchrun(
        ROOT / "eval_ood.py",
        *arguments,
        "-cache_dir",
        tmp_path / "cache2",
        "-out_dir",
        tmp_path / "two",
    )
    assert two.returncode == 0, two.stderr[-2000:]
    assert (tmp_path / "one" / "metrics.csv").read_bytes() == (
        tmp_path / "two" / "metrics.csv"
    ).read_bytes()
    assert "x 2 processes" in two.stdout and two.stdout.count("report: ") == 1


# ---- a job as a user sees it -------------------------------------------------------------------------------------------------


def workers(job: subprocess.Popen) -> dict[int, int]:
    """{rank: process id} of a torchrun's processes."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1]) == job.pid:
                words = dict(
                    w.split("=", 1)
                    for w in (folder / "environ").read_text().split("\0")
                    if "=" in w
                )
                found[int(words["RANK"])] = int(folder.name)
        except (OSError, KeyError, ValueError):
            pass
    return found


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="reads /proc")
def test_killed_process_ends_the_job_which_resumes_to_the_bit(tmp_path):
    def command(folder):
        return [
            ROOT / "classifier_pretraining.py",
            *TINY,
            "-arch",
            "small_wideresnet",
            "-model_args",
            "dropout=0.2",
            "-epochs",
            3,
            "-resume",
            "-out_dir",
            folder,
        ]

    straight = torchrun(*command(tmp_path / "straight"))
    assert straight.returncode == 0, straight.stderr[-2000:]
    assert straight.stdout.count("epoch 2/3") == 1  # rank 0 alone speaks
    job = subprocess.Popen(
        [*TORCHRUN, *map(str, command(tmp_path / "killed"))],
        env=ENVIRONMENT,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in job.stdout:
        if line.startswith("epoch 1/3"):
            os.kill(workers(job)[1], signal.SIGKILL)
            break
    began = time.monotonic()
    _, err = job.communicate(timeout=120)
    assert job.returncode != 0 and time.monotonic() - began < 60
    assert "Signal 9 (SIGKILL)" in err or "-resume" in err
    assert runs.Run(tmp_path / "killed").load("last.pt")["epoch"] < 3
    resumed = torchrun(*command(tmp_path / "killed"))
    assert resumed.returncode == 0 and "epoch 1/3" not in resumed.stdout, resumed.stderr[-2000:]
    for name in ("last.pt", "best.pt"):
        assert same(
            *(
                runs.Run(tmp_path / folder).load(name)["state_dict"]
                for folder in ("straight", "killed")
            )
        )


def test_a_finished_process_does_not_wait_for_the_end_of_the_interpreter(tmp_path):
    """Where gloo's threads abort it now and then: here whatever is deleted at that time would change the exit code. Exit functions still run."""
    (tmp_path / "job.py").write_text(f"""
import atexit, os, sys
sys.path[:0] = [{str(ROOT)!r}]
from ood import distributed
class AtTheEnd:
    def __del__(self): os._exit(7)
last = AtTheEnd()
distributed.begin()
atexit.register(print, "said at the exit")
print("done")
distributed.end()
""")
    done = torchrun(tmp_path / "job.py")
    assert (
        done.returncode == 0
        and done.stdout.count("done") == done.stdout.count("said at the exit") == 2
    ), done.stderr[-2000:]


def test_bad_input_is_said_once_and_scripts_of_one_process_refuse(
    tmp_path, monkeypatch, call_script
):
    bad = torchrun(
        ROOT / "classifier_pretraining.py",
        *TINY,
        "-epochs",
        1,
        "-arch",
        "smal_cnn",
        "-out_dir",
        tmp_path / "run",
    )
    assert (
        bad.returncode != 0
        and bad.stderr.count("did you mean 'small_cnn'") == 1
        and not (tmp_path / "run").exists()
    )
    for key, value in dict(
        WORLD_SIZE="2", RANK="0", MASTER_ADDR="localhost", MASTER_PORT="1"
    ).items():
        monkeypatch.setenv(key, value)
    refused = call_script("train_all.py", "-dry_run")
    assert (
        refused.returncode == 2 and "one process" in refused.stderr and "-devices" in refused.stderr
    )


def test_slurm_example_gives_flags_that_the_programs_take(tmp_path):
    """The real file with an srun, scontrol and torchrun that write down what they are called with; a command that fails ends it."""
    (tmp_path / "bin").mkdir()
    for name, body in {
        "srun": 'exec "$@"',
        "scontrol": "echo node1; sleep 0.3; echo node2",
        "torchrun": f'printf "%s\\0" "$@" >> {tmp_path}/calls; printf "\\n" >> {tmp_path}/calls; exit ${{FAIL:-0}}',
    }.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    env = {
        **os.environ,
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_NNODES": "2",
        "SLURM_JOB_ID": "7",
        "SLURM_GPUS_ON_NODE": "4",
        "RUN": str(tmp_path / "a run"),
    }
    done = subprocess.run(
        ["bash", ROOT / "scripts" / "slurm_example.sh"],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    calls, flags = (
        [line.split("\0")[:-1] for line in (tmp_path / "calls").read_text().splitlines()],
        {},
    )
    for call in calls:
        started = get_args_parser().parse_args(call)
        assert (
            started.nnodes,
            started.nproc_per_node,
            started.rdzv_endpoint,
            started.rdzv_id,
            started.max_restarts,
        ) == ("2", "4", "node1:29500", "7", 0)
        parser = runpy.run_path(str(ROOT / started.training_script), run_name="looked at")["parser"]
        flags[started.training_script] = parser.parse_args(
            started.training_script_args
        )  # exits at a flag that it does not have
    classifier, decoder, evaluation = (
        flags["classifier_pretraining.py"],
        flags["ood_training.py"],
        flags["eval_ood.py"],
    )
    assert (
        decoder.classifier == f"{classifier.out_dir}/best.pt"
        and evaluation.checkpoint == decoder.out_dir
        and classifier.out_dir == str(tmp_path / "a run")
    )
    assert (
        classifier.resume
        and decoder.resume
        and decoder.config == evaluation.config
        and (ROOT / decoder.config).is_file()
    )
    assert (
        classifier.batch_size * 8
        == decoder.batch_size * 8
        == json.loads((ROOT / decoder.config).read_text())["optimization"]["batch_size"]
    )
    failed = subprocess.run(
        ["bash", ROOT / "scripts" / "slurm_example.sh"],
        env={**env, "FAIL": "2"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (
        failed.returncode == 2
        and len((tmp_path / "calls").read_text().splitlines()) == len(calls) + 1
    )
