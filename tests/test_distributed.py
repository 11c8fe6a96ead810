"""Two processes against one: the same losses, weights, outputs and scores.

Also: a job with a killed process, and what a user reads.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
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
    job = start(ROOT / "tests" / "distributed_worker.py", folder)
    alone = {
        name: case(tmp_path_factory.mktemp("one") / name) for name, case in worker.CASES.items()
    }
    done = finish(job)
    assert done.returncode == 0, done.stderr[-3000:]
    return alone, [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


def torchrun(script, *arguments, timeout=600):
    """Run a script in two processes that torchrun starts and watches."""
    return subprocess.run(
        [*TORCHRUN, str(script), *map(str, arguments)],
        env=ENVIRONMENT,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def start(script, *arguments) -> list[subprocess.Popen]:
    """Start a script twice, as torchrun does, but without its agent, which takes seconds."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            [sys.executable, str(script), *map(str, arguments)],
            env={**ENVIRONMENT, **common, "RANK": rank, "LOCAL_RANK": rank},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]


def finish(job: list[subprocess.Popen], timeout=600) -> subprocess.CompletedProcess:
    """Wait for both processes; when one fails, end the other. Their outputs are joined."""
    with ThreadPoolExecutor(2) as readers:

        def read(process):
            outputs = process.communicate(timeout=timeout)
            if process.returncode:
                for other in job:
                    other.kill()
            return outputs

        outputs = list(readers.map(read, job))
    codes = [process.returncode for process in job]
    out, err = ("".join(texts) for texts in zip(*outputs))
    return subprocess.CompletedProcess(job[0].args, next(filter(None, codes), 0), out, err)


def two(script, *arguments) -> subprocess.CompletedProcess:
    """Run a script in two processes."""
    return finish(start(script, *arguments))


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def numbers(record: dict) -> dict:
    return {
        k: v
        for k, v in record.items()
        if isinstance(v, (int, float)) and k not in ("seconds", "images_per_s")
    }


# ---- training


@pytest.mark.parametrize("case", ("plain", "batchnorm", "outlier_exposure", "center"))
def test_two_processes_train_as_one_with_the_doubled_batch(both, case):
    """Every number of every epoch and every weight is equal.

    The cases: without BatchNorm, with the synchronised one, with outliers, with learned centres.
    """
    one, (first, second) = both[0][case], [found[case] for found in both[1]]
    assert same(first["weights"], second["weights"])
    for key, tensor in one["weights"].items():
        torch.testing.assert_close(first["weights"][key], tensor, **CLOSE)
    assert len(first["records"]) == len(one["records"]) == 3
    for ours, theirs in zip(first["records"], one["records"]):
        assert numbers(ours) == pytest.approx(numbers(theirs), rel=1e-6)
        assert ours["best"] == theirs["best"]
    assert one["records"][0]["loss"] != one["records"][2]["loss"]


def test_queues_of_virtual_outliers_are_those_of_one_process(both):
    one, found = both[0]["queues"], [found["queues"] for found in both[1]]
    assert all(torch.equal(of_rank[key], one[key]) for of_rank in found for key in one)
    assert one["seen"].tolist() == [14, 6, 6]


def test_processes_that_would_resume_differently_stop(both):
    """Rank 1 has no last.pt, or the last.pt of another epoch."""
    assert both[0]["disagree"] == ["", ""]
    for found in both[1]:
        missing, other = found["disagree"]
        assert "process 1 does not see" in missing and "last.pt" in missing
        assert "different epochs" in other and "(2, 1)" in other


def test_what_rank_0_sends_lies_on_the_cpu(monkeypatch):
    """Otherwise every process would put a tensor of cuda:0 on cuda:0."""
    moved = []
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: moved.append(self) or self)
    sent = distributed._on_cpu(
        {"a": [torch.ones(1, requires_grad=True)], "b": (torch.zeros(2), 3), "c": "x", "d": None}
    )
    assert len(moved) == 2 and not sent["a"][0].requires_grad
    assert (sent["b"][1:], sent["c"], sent["d"]) == ((3,), "x", None)


def test_resumed_run_of_two_processes_equals_an_undisturbed_one(both):
    first, second = (found["resumed"] for found in both[1])
    assert same(first["straight"]["weights"], first["resumed"]["weights"])
    assert first["straight"]["records"] == first["resumed"]["records"]
    assert same(first["resumed"]["weights"], second["resumed"]["weights"])
    # two processes draw dropout masks of their own
    assert not same(first["straight"]["weights"], both[0]["resumed"]["straight"]["weights"])


@pytest.mark.parametrize(
    "case, steps",
    (("remainder", [17, 16]), ("uneven", [16, 16, 5]), ("few", [3]), ("in_order", [8, 8, 4])),
)
def test_every_image_once_in_the_order_of_one_process(both, case, steps):
    shares = [found[case] for found in both[1]]
    count = sum(steps)
    whole = [a + b for a, b in zip(*(share["steps"] for share in shares))]
    lengths = [len(step) for step in whole]
    assert sorted(lengths, reverse=True) == steps
    assert case == "remainder" or lengths == steps
    assert all(abs(len(a) - len(b)) <= 1 for a, b in zip(*(share["steps"] for share in shares)))
    assert [share["length"] for share in shares] == [len(steps)] * 2
    assert sum(whole, []) == sum(both[0][case]["steps"], [])
    assert sorted(sum(whole, [])) == list(range(count))


def test_one_image_is_measured_by_one_process(both):
    assert sorted(found["one"]["steps"] for found in both[1]) == [[], [[0]]]


def test_fewer_training_images_than_processes_are_refused(monkeypatch):
    monkeypatch.setattr(distributed, "world", lambda: 4)
    with pytest.raises(InputError, match="3 training .* for 4 processes"):
        distributed.spans(3, 8)


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("WORLD_SIZE", "abc", "WORLD_SIZE is 'abc', not an integer from 1"),
        ("WORLD_SIZE", "0", "WORLD_SIZE is '0'"),
        ("WORLD_SIZE", "9" * 5000, "WORLD_SIZE is"),
        ("MASTER_PORT", "notaport", "MASTER_PORT is 'notaport', not an integer from 0 to 65535"),
        ("MASTER_PORT", "65536", "MASTER_PORT is '65536'"),
        ("RANK", "2", "RANK is '2', not an integer from 0 to 1"),
        ("RANK", "-1", "RANK is '-1'"),
        ("LOCAL_RANK", "first", "LOCAL_RANK is 'first'"),
        ("MASTER_ADDR", "no.such.host.invalid", "cannot join .* at no.such.host.invalid:1"),
    ],
)
def test_an_environment_that_torchrun_does_not_make_is_bad_input(monkeypatch, name, value, words):
    launched = dict(WORLD_SIZE="2", RANK="1", MASTER_ADDR="localhost", MASTER_PORT="1")
    for key, usual in {**launched, "LOCAL_RANK": "0", name: value}.items():
        monkeypatch.setenv(key, usual)
    monkeypatch.setattr(distributed, "PATIENCE", timedelta(seconds=1))
    with pytest.raises(InputError, match=words):
        distributed.begin()


def test_the_last_to_leave_does_not_fail(monkeypatch):
    """When another process has gone, both the barrier and the taking leave may raise."""
    for failing in ("gathered", "destroy_process_group"):
        left = []
        monkeypatch.setattr(distributed, "joined", lambda: True)
        monkeypatch.setattr(distributed, "world", lambda: 2)
        monkeypatch.setattr(distributed, "_code", None)
        monkeypatch.setattr(distributed, "gathered", lambda value: left.append("waits"))
        monkeypatch.setattr(distributed.dist, "destroy_process_group", lambda: left.append("goes"))

        def gone(*_, failing=failing):
            raise distributed.dist.DistBackendError(f"connection closed by peer in {failing}")

        monkeypatch.setattr(
            distributed if failing == "gathered" else distributed.dist, failing, gone
        )
        distributed.end(3)
        assert distributed._code == 3 and left == (["waits"] if failing != "gathered" else [])


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


# ---- methods


def test_leave_out_fold(both):
    """Both processes agree exactly; a single process gives close values, not equal ones.

    BatchNorm sees half of each step, and each process takes the hinge of its own means.
    """
    one, (first, second) = both[0]["leaveout"], [found["leaveout"] for found in both[1]]
    assert same(first["weights"], second["weights"])
    for ours, theirs in zip(first["records"], one["records"], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=0.2)
        assert 0 <= ours["valid_auroc"] <= 1


def test_vmdls_shares_its_batches_out(both):
    """Both processes agree exactly; a single process agrees up to rounding in float32.

    Loss, noise, augmentation and BatchNorm belong to the whole batch.
    """
    one, (first, second) = both[0]["vmdls"], [found["vmdls"] for found in both[1]]
    assert same(first["weights"], second["weights"])
    assert torch.equal(first["means"], second["means"]) and first["files"] == one["files"]
    for ours, theirs in zip(first["records"], one["records"], strict=True):
        assert ours["margin"] == theirs["margin"]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
    torch.testing.assert_close(first["means"], one["means"], rtol=1e-2, atol=1e-3)


def test_heatmap_decoder(both):
    one, (first, second) = both[0]["heatmap"], [found["heatmap"] for found in both[1]]
    assert same(first["weights"], second["weights"])
    assert torch.equal(first["scores"], second["scores"]) and len(first["scores"]) == 90
    assert [r["epoch"] for r in first["records"]] == [1, 2]
    assert first["records"][0]["loss"] == pytest.approx(one["records"][0]["loss"], rel=0.1)


# ---- evaluation


@pytest.mark.parametrize("case", ("outputs", "cached"))
def test_outputs_equal_those_of_one_process_to_the_bit(both, case):
    for found in both[1]:
        for count, arrays in both[0][case].items():
            pairs = zip(arrays, found[case][count], strict=True)
            assert len(arrays[0]) == count and all(torch.equal(a, b) for a, b in pairs)


def test_values_rows_and_errors_cross_over(both):
    for rank, found in enumerate(both[1]):
        talk = found["talk"]
        assert talk["said"] == "no such thing" and talk["first"] == 0
        assert talk["who"] == [0, 1] and talk["turn"] == rank
        assert talk["rows"].tolist() == [[0, 1], [2, 3], [4, 5], [10, 11], [12, 13]]
        assert talk["of_one"].tolist() == [[True], [True]]
        assert talk["alone"] == (1, [rank]) and talk["total"].tolist() == [2.0, 1.0]


def test_eval_ood_writes_the_same_metrics(tmp_path, call_script, digits_run):
    config = {"id_dataset": "mnist5k", "arch": "small_cnn", "width": 4, "num_classes": 10}
    (tmp_path / "c.json").write_text(json.dumps({**config, "benchmark": "demo"}), encoding="utf-8")
    words = "-limit 150 -device cpu -detectors msp knn odin mahalanobis -datasets letters".split()
    words += ["-config", tmp_path / "c.json", "-checkpoint", digits_run / "best.pt"]

    def folders(name):
        return "-cache_dir", tmp_path / f"cache-{name}", "-out_dir", tmp_path / name

    alone = call_script("eval_ood.py", *words, *folders("one"))
    assert alone.returncode == 0, alone.stderr
    shared = two(ROOT / "eval_ood.py", *words, *folders("two"))
    assert shared.returncode == 0, shared.stderr[-2000:]
    one, both = ((tmp_path / name / "metrics.csv").read_bytes() for name in ("one", "two"))
    assert one == both
    assert "x 2 processes" in shared.stdout and shared.stdout.count("report: ") == 1


# ---- a job as a user sees it


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
    """torchrun ends the job when a process dies; -resume then continues it to the bit."""

    def command(folder):
        words = "-arch small_wideresnet -model_args dropout=0.2 -epochs 3 -resume -out_dir".split()
        return ROOT / "classifier_pretraining.py", *TINY, *words, tmp_path / folder

    straight = two(*command("straight"))
    assert straight.returncode == 0, straight.stderr[-2000:]
    assert straight.stdout.count("epoch 2/3") == 1  # rank 0 alone speaks
    job = subprocess.Popen(
        [*TORCHRUN, *map(str, command("killed"))],
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
    _, err = job.communicate(timeout=120)
    assert job.returncode != 0
    assert "Signal 9 (SIGKILL)" in err or "-resume" in err
    assert runs.Run(tmp_path / "killed").load("last.pt")["epoch"] < 3
    resumed = two(*command("killed"))
    assert resumed.returncode == 0 and "epoch 1/3" not in resumed.stdout, resumed.stderr[-2000:]
    for name in ("last.pt", "best.pt"):
        found = [runs.Run(tmp_path / folder).load(name) for folder in ("straight", "killed")]
        assert same(*(payload["state_dict"] for payload in found))


def test_a_finished_process_does_not_wait_for_the_end_of_the_interpreter(tmp_path):
    """At that end gloo's threads abort the process now and then.

    Here an object that is deleted at that time would change the exit code. Exit functions still
    run.
    """
    (tmp_path / "job.py").write_text(
        f"""
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
""",
        encoding="utf-8",
    )
    done = two(tmp_path / "job.py")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("done") == done.stdout.count("said at the exit") == 2


def test_bad_input_is_said_once_and_scripts_of_one_process_refuse(
    tmp_path, monkeypatch, call_script
):
    words = "-epochs", 1, "-arch", "smal_cnn", "-out_dir", tmp_path / "run"
    bad = torchrun(ROOT / "classifier_pretraining.py", *TINY, *words)
    assert bad.returncode != 0 and bad.stderr.count("did you mean 'small_cnn'") == 1
    assert not (tmp_path / "run").exists()
    launched = dict(WORLD_SIZE="2", RANK="0", MASTER_ADDR="localhost", MASTER_PORT="1")
    for key, value in launched.items():
        monkeypatch.setenv(key, value)
    refused = call_script("train_all.py", "-dry_run")
    assert refused.returncode == 2
    assert "one process" in refused.stderr and "-devices" in refused.stderr


def test_slurm_example_gives_flags_that_the_programs_take(tmp_path):
    """Run the real file with a torchrun that writes down how it is called, and a false srun.

    A command that fails ends the job.
    """
    (tmp_path / "bin").mkdir()
    write_down = 'printf "%s\\0" "$@" >> CALLS; printf "\\n" >> CALLS; exit ${FAIL:-0}'
    for name, body in {
        "srun": 'exec "$@"',
        "scontrol": "echo node1; sleep 0.3; echo node2",
        "torchrun": write_down.replace("CALLS", str(tmp_path / "calls")),
    }.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{body}\n", encoding="utf-8")
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

    def submit(**more):
        script = ["bash", ROOT / "scripts" / "slurm_example.sh"]
        return subprocess.run(
            script, env={**env, **more}, cwd=tmp_path, capture_output=True, text=True
        )

    def calls():
        return (tmp_path / "calls").read_text(encoding="utf-8").splitlines()

    done = submit()
    assert done.returncode == 0, done.stderr
    flags = {}
    for call in calls():
        job = get_args_parser().parse_args(call.split("\0")[:-1])
        assert (job.nnodes, job.nproc_per_node) == ("2", "4")
        assert (job.rdzv_endpoint, job.rdzv_id, job.max_restarts) == ("node1:29500", "7", 0)
        script = runpy.run_path(str(ROOT / job.training_script), run_name="looked at")
        parser = script["make_parser"]() if "make_parser" in script else script["parser"]
        # exits at a flag that the script does not have
        flags[job.training_script] = parser.parse_args(job.training_script_args)
    scripts = "classifier_pretraining.py", "ood_training.py", "eval_ood.py"
    classifier, decoder, evaluation = (flags[script] for script in scripts)
    assert classifier.out_dir == str(tmp_path / "a run")
    assert decoder.classifier == f"{classifier.out_dir}/best.pt"
    assert evaluation.checkpoint == decoder.out_dir
    assert classifier.resume and decoder.resume
    assert decoder.config == evaluation.config
    config = json.loads((ROOT / decoder.config).read_text(encoding="utf-8"))
    whole = config["optimization"]["batch_size"]
    assert classifier.batch_size * 8 == decoder.batch_size * 8 == whole
    before = len(calls())
    assert submit(FAIL="2").returncode == 2
    assert len(calls()) == before + 1
