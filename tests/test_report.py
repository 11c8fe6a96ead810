"""Reports and figures: files read back, numbers in tables, paper beside ours, whole PNG files."""

import csv
import dataclasses
import io
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread

import ood.provenance
from ood import files
from ood.cli import RunError
from ood.config import InputError
from ood.evaluation import plots, report
from ood.evaluation.report import COLUMNS, Report, averages, result_row
from ood.metrics import Metrics, evaluate
from ood.provenance import provenance

HEADER = (
    "detector,dataset,group,n_id,n_ood,"
    "fpr95,auroc,aupr_in,aupr_out,detection_error,fpr95_ood_positive"
)
SETS = {"svhn": "near", "lsun": "near", "isun": "far", "dtd": "far"}
RANDOM = np.random.default_rng(3)


def made_row(detector, dataset, group="", fpr95=0.5, auroc=0.75, n_ood=100):
    return result_row(
        detector, dataset, Metrics(fpr95, auroc, 0.7, 0.6, 0.2, 0.4), 1000, n_ood, group
    )


@pytest.fixture
def rows():
    made = []
    for detector in ("msp", "dice"):
        for index, (dataset, group) in enumerate(SETS.items()):
            made.append(
                result_row(
                    detector,
                    dataset,
                    evaluate(RANDOM.normal(size=700), RANDOM.normal(index, 1, size=300 + index)),
                    700,
                    300 + index,
                    group,
                )
            )
    return made


@pytest.fixture
def facts():
    return provenance(
        ["python3", "eval_ood.py", "-config", "my config.json"],
        {"limit": None, "mean": (0.5,)},
        1,
        "cpu",
        {"network": "ab12"},
        {"total": 2.5},
    )


def tables(text):
    """The markdown tables of a text: {heading above: (head, {first cell: {column: cell}})}."""
    found, heading = {}, ""
    for line in text.splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif line.startswith("|"):
            found.setdefault(heading, []).append(
                [cell.strip() for cell in line.strip("|").split(" | ")]
            )
    return {
        name: {line[0]: dict(zip(lines[0], line)) for line in lines[2:]}
        for name, lines in found.items()
    }


def table(text, start):
    return next(lines for heading, lines in tables(text).items() if heading.startswith(start))


def test_csv_has_the_header_and_every_digit(rows, facts, tmp_path):
    Report(rows, facts).write(tmp_path / "new" / "folder")
    text = (tmp_path / "new" / "folder" / "metrics.csv").read_text()
    assert text.splitlines()[0] == HEADER == ",".join(COLUMNS)
    read = list(csv.DictReader(io.StringIO(text)))
    assert len(read) == len(rows)
    for line, row in zip(read, rows):
        assert all(float(line[m]) == row[m] for m in Metrics._fields), "a float lost digits"
        assert (
            line["detector"],
            line["dataset"],
            line["group"],
            int(line["n_id"]),
            int(line["n_ood"]),
        ) == tuple(row[c] for c in COLUMNS[:5])


def test_csv_quotes_what_needs_quotes(facts):
    text = Report([made_row('dice:percentile=50,clip="x"', "./my, photos")], facts).csv()
    assert next(csv.DictReader(io.StringIO(text)))["detector"] == 'dice:percentile=50,clip="x"'


def test_json_holds_rows_averages_and_provenance(rows, facts, tmp_path):
    rows[0]["seconds"] = np.float32(0.5)
    rows[1]["other"] = math.inf
    Report(rows, facts, accuracy=0.9).write(tmp_path)
    content = json.loads(
        (tmp_path / "metrics.json").read_text(),
        parse_constant=lambda name: pytest.fail(f"{name} is not JSON"),
    )
    assert content["rows"][0]["seconds"] == 0.5 and content["rows"][1]["other"] is None
    assert [{c: row[c] for c in COLUMNS} for row in content["rows"]] == [
        {c: row[c] for c in COLUMNS} for row in rows
    ]
    assert content["provenance"] == facts and content["accuracy"] == 0.9
    assert [(a["detector"], a["group"], a["n_sets"]) for a in content["averages"][:3]] == [
        ("msp", "near", 2),
        ("msp", "far", 2),
        ("msp", "all", 4),
    ]


def test_averages_are_unweighted():
    made = [
        made_row("a", "x", "near", 0.1, n_ood=10),
        made_row("a", "y", "near", 0.2, n_ood=9000),
        made_row("a", "z", "far", 0.6, n_ood=1),
    ]
    found = {row["group"]: row["fpr95"] for row in averages(made)}
    assert found == {
        "near": pytest.approx(0.15),
        "far": pytest.approx(0.6),
        "all": pytest.approx(0.3),
    }


def test_markdown_numbers(rows, facts):
    text = Report(
        rows, facts, title="Four sets", accuracy=0.8230, labels={"dtd": "Textures"}
    ).markdown()
    assert (
        text.startswith("# Four sets\n")
        and "82.30 %" in text
        and "seed 1" in text
        and "2.5 s" in text
    )
    for metric, start in (("fpr95", "FPR95"), ("auroc", "AUROC")):
        read = table(text, start)
        assert list(read["msp"]) == [
            "detector",
            "svhn",
            "lsun",
            "average near",
            "isun",
            "Textures",
            "average far",
            "average",
        ]
        for detector in ("msp", "dice"):
            own = {row["dataset"]: row[metric] for row in rows if row["detector"] == detector}
            expected = {
                "svhn": own["svhn"],
                "Textures": own["dtd"],
                "average near": (own["svhn"] + own["lsun"]) / 2,
                "average": sum(own.values()) / 4,
            }
            for column, value in expected.items():
                assert float(read[detector][column].strip("*")) == pytest.approx(
                    100 * value, abs=0.00501
                )
    overall = table(text, "All metrics")
    assert float(overall["dice"]["AUPR-In"].strip("*")) == pytest.approx(
        100 * np.mean([r["aupr_in"] for r in rows if r["detector"] == "dice"]), abs=0.00501
    )
    assert (
        "ID is the positive class" in text
        and "larger for outliers" in text
        and "pytorch-ood" in text
    )
    assert "eval_ood.py -config 'my config.json'" in text


def test_best_value_is_bold_in_the_right_direction(facts):
    made = [
        made_row("a", "x", fpr95=0.1, auroc=0.9),
        made_row("b", "x", fpr95=0.2, auroc=0.95),
        made_row("c", "x", fpr95=0.1, auroc=0.5),
    ]
    text = Report(made, facts).markdown()
    assert [table(text, "FPR95")[d]["x"] for d in "abc"] == ["**10.00**", "20.00", "**10.00**"]
    assert [table(text, "AUROC")[d]["x"] for d in "abc"] == ["90.00", "**95.00**", "50.00"]
    assert "**" not in table(Report(made[:1], facts).markdown(), "FPR95")["a"]["x"], (
        "nothing to compare with one detector"
    )
    assert "average" not in table(text, "FPR95")["a"], "the average of one set is that set"
    equal = Report([made_row("a", "x", fpr95=1.0), made_row("b", "x", fpr95=1.0)], facts).markdown()
    assert table(equal, "FPR95")["a"]["x"] == "100.00", "no best among equals"


def test_paper_beside_ours(facts):
    paper = {
        "a": {
            "x": {"fpr95": 0.1234},
            "Label of y": {"fpr95": 0.5, "auroc": 0.6},
            "average": {"fpr95": 0.3},
        },
        "unused": {"x": {"fpr95": 0.9}},
    }
    made = [
        made_row("a", "x", fpr95=0.2),
        made_row("a", "y", fpr95=0.4),
        made_row("b", "x", fpr95=0.6),
        made_row("b", "y", fpr95=0.6),
    ]
    text = Report(
        made, facts, paper=paper, source="Somebody, ECCV 2022", labels={"y": "Label of y"}
    ).markdown()
    read = table(text, "FPR95")["a"]
    assert (read["x"], read["Label of y"], read["average"]) == (
        "12.34 / **20.00**",
        "50.00 / **40.00**",
        "30.00 / **30.00**",
    )
    assert table(text, "FPR95")["b"]["x"] == "60.00" and "paper / ours" in text
    assert "Somebody, ECCV 2022" in text and "-10.00 points (a, Label of y)" in text


def test_average_of_the_paper_is_left_out_when_it_is_over_other_sets(facts):
    paper = {
        "a": {"x": {"fpr95": 0.1}, "z": {"fpr95": 0.5}, "average": {"fpr95": 0.3}},
        "b": {"average": {"fpr95": 0.35}},
    }
    made = [made_row(d, s) for d in "ab" for s in ("x", "y")]
    text = Report(made, facts, paper=paper).markdown()
    assert "/" not in table(text, "FPR95")["a"]["average"] and "left out" in text and "(z)" in text
    complete = Report(
        [made_row(d, s) for d in "ab" for s in ("x", "z")], facts, paper=paper
    ).markdown()
    assert (
        table(complete, "FPR95")["b"]["average"].startswith("35.00 /")
        and "left out" not in complete
    )
    only_means = {"a": {"average": {"fpr95": 0.3}}}
    assert (
        "(other)" in Report(made, facts, paper=only_means, datasets=("x", "y", "other")).markdown()
    )
    assert "left out" not in Report(made, facts, paper=only_means, datasets=("x", "y")).markdown()


def test_a_detector_without_some_set_has_no_average(facts):
    text = Report([made_row("a", "x"), made_row("a", "y"), made_row("b", "x")], facts).markdown()
    assert table(text, "FPR95")["b"]["y"] == table(text, "FPR95")["b"]["average"] == "–"


def test_unknown_numbers_and_special_characters(facts):
    text = Report([made_row("a|b", "x", fpr95=math.nan), made_row("c", "x")], facts).markdown()
    assert "a\\|b" in text and "nan" not in text
    assert (
        json.loads(Report([made_row("a", "x", fpr95=math.nan)], facts).json())["rows"][0]["fpr95"]
        is None
    )


def test_figures_are_linked_relative_to_the_report(rows, facts, tmp_path):
    figure = tmp_path / "out" / "figures" / "two words.png"
    text = Report(rows, facts, figures=(figure, (tmp_path / "roc.png", "ROC curves"))).markdown(
        tmp_path / "out"
    )
    assert "![two words](figures/two%20words.png)" in text and "![ROC curves](../roc.png)" in text


def test_console_is_aligned_and_fits_the_width(rows, facts):
    text = Report(rows, facts).console(width=70)
    blocks = text.split("\n", 1)[1].split("\n\n")
    assert len(blocks) > 1
    for block in blocks:
        lines = block.splitlines()
        assert (
            len({len(line) for line in lines}) == 1
            and len(lines[0]) <= 70
            and lines[1].startswith("msp")
        )
    first = next(r for r in rows if r["detector"] == "msp")
    assert f"{100 * first['fpr95']:.2f} / {100 * first['auroc']:.2f}" in text


def test_console_of_one_detector_lists_all_metrics(rows, facts):
    text = Report([r for r in rows if r["detector"] == "dice"], facts).console()
    assert (
        "AUPR-Out" in text
        and len(text.splitlines()) == 2 + 4 + 3
        and text.splitlines()[-1].startswith("average ")
    )


@pytest.mark.parametrize(
    "spoil, said",
    [
        (lambda rows: [], "at least one"),
        (lambda rows: rows + rows[:1], "two result rows"),
        (lambda rows: [{k: v for k, v in rows[0].items() if k != "auroc"}], "lacks auroc"),
    ],
)
def test_wrong_rows_are_refused(rows, facts, spoil, said):
    with pytest.raises(ValueError, match=said):
        Report(spoil(rows), facts)


def test_provenance_is_plain_and_complete(facts):
    assert json.loads(json.dumps(facts)) == facts
    assert facts["command"] == "python3 eval_ood.py -config 'my config.json'" and facts[
        "config"
    ] == {"limit": None, "mean": [0.5]}
    assert facts["versions"]["torch"] == torch.__version__ and {
        "python",
        "torchvision",
        "numpy",
    } <= set(facts["versions"])
    assert facts["machine"]["threads"] == torch.get_num_threads() and facts["machine"]["cpu"]
    assert facts["git"] is None or (
        len(facts["git"]["revision"]) == 40 and isinstance(facts["git"]["dirty"], bool)
    )


def test_provenance_names_the_gpu_of_a_described_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "get_device_name", lambda device: f"GPU behind {torch.device(device)}"
    )
    for device in ("cuda:1 (NVIDIA H100)", "cuda:1", torch.device("cuda", 1)):
        assert provenance("x", {}, 0, device, {}, {})["machine"]["gpu"] == "GPU behind cuda:1"
    assert provenance("x", {}, 0, "cpu (2 threads)", {}, {})["machine"]["gpu"] is None


def test_no_git_no_revision(tmp_path, monkeypatch):
    assert ood.provenance._git_revision(tmp_path) is None
    (tmp_path / ".git").mkdir()
    assert ood.provenance._git_revision(tmp_path) is None, "not a repository"
    monkeypatch.setenv("PATH", "")
    assert ood.provenance._git_revision(tmp_path) is None, "no git program"


def test_plain_values():
    @dataclasses.dataclass
    class Settings:
        path: Path = Path("a/b")
        rates: tuple = (0.1, np.float64(0.2))

    assert files.plain(
        {
            1: Settings(),
            "t": torch.ones(2),
            "d": torch.device("cpu"),
            "n": float("nan"),
            "i": np.int64(3),
            "b": True,
        }
    ) == {
        "1": {"path": "a/b", "rates": [0.1, 0.2]},
        "t": [1.0, 1.0],
        "d": "cpu",
        "n": None,
        "i": 3,
        "b": True,
    }


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "metrics.csv"
    files.write_text(path, "old")
    with pytest.raises(KeyboardInterrupt):
        with files.replacing(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["metrics.csv"]
    with pytest.raises(RunError, match="cannot write"):
        files.write_text(path / "below a file" / "x.csv", "text")


def test_scores_are_written_per_data_set(tmp_path):
    scores = {
        "cifar10": {"msp": np.arange(3.0), "dice:percentile=50": torch.ones(3)},
        "./my photos/": {"msp": np.zeros(2)},
    }
    paths = report.write_scores(tmp_path, scores)
    assert [p.parent for p in paths] == [tmp_path / "scores"] * 2 and paths[0].name == "cifar10.npz"
    assert sorted(os.listdir(tmp_path / "scores")) == sorted(p.name for p in paths)
    with np.load(paths[0]) as stored:
        assert (
            set(stored.files) == {"msp", "dice:percentile=50"}
            and (stored["msp"] == np.arange(3)).all()
        )


# Figures


def made_scores(detectors=("msp", "energy"), sets=("svhn", "dtd"), n=200):
    return {
        d: {
            "cifar10": RANDOM.normal(size=n),
            **{s: RANDOM.normal(1 + i, 1, size=n // 2) for i, s in enumerate(sets)},
        }
        for d in detectors
    }


def assert_picture(path):
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    pixels = imread(path)[..., :3]
    assert min(pixels.shape[:2]) > 250
    assert len(np.unique((pixels * 255).astype(int).reshape(-1, 3), axis=0)) > 20, (
        "nearly one colour"
    )
    return pixels


def colour_share(pixels, colour):
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.mean(np.abs(pixels - wanted).max(-1) < 0.02)


def test_by_detector():
    assert plots.by_detector({"id": {"a": 1, "b": 2}, "ood": {"a": 3, "b": 4}}) == {
        "a": {"id": 1, "ood": 3},
        "b": {"id": 2, "ood": 4},
    }


@pytest.mark.parametrize(
    "draw",
    [
        plots.score_histograms,
        plots.roc_curves,
        lambda *a, **k: plots.roc_curves(*a, by="detector", **k),
    ],
)
def test_figures_show_every_curve(draw, tmp_path):
    paths = draw(
        made_scores(),
        "cifar10",
        tmp_path / "new" / "figure.png",
        labels={"dtd": "Textures", "cifar10": "CIFAR-10 $x_1$"},
    )
    assert paths == [tmp_path / "new" / "figure.png"] and os.listdir(tmp_path / "new") == [
        "figure.png"
    ]
    pixels = assert_picture(paths[0])
    assert all(colour_share(pixels, plots.COLOURS[i]) > 2e-4 for i in range(2))
    assert colour_share(pixels, plots.COLOURS[4]) == 0


HARD = {
    "constant": (np.full(50, 3.0), np.full(20, 3.0)),
    "constant but apart": (np.zeros(50), np.ones(20)),
    "one image": (np.zeros(1), np.ones(1)),
    "outliers": (
        np.append(RANDOM.normal(size=500), 1e12),
        np.append(RANDOM.normal(size=500), -1e12),
    ),
    "huge": (np.full(9, 1e30), np.full(9, 3e30)),
    "infinite": (np.array([0.0, 1.0, np.inf]), np.array([-np.inf, np.inf])),
    "all infinite": (np.full(4, np.inf), np.full(4, -np.inf)),
    "float32 next to each other": (
        np.full(9, 1, dtype=np.float32),
        np.full(9, np.nextafter(np.float32(1), np.float32(2))),
    ),
}


def test_hard_scores_can_be_drawn(tmp_path, recwarn):
    scores = {name: {"cifar10": pair[0], "svhn": pair[1]} for name, pair in HARD.items()}
    for path in plots.score_histograms(scores, "cifar10", tmp_path / "h.png") + plots.roc_curves(
        scores, "cifar10", tmp_path / "r.png", by="detector"
    ):
        assert_picture(path)
    assert not [w for w in recwarn if issubclass(w.category, (RuntimeWarning, UserWarning))], [
        str(w.message) for w in recwarn
    ]


def test_outliers_do_not_squeeze_the_histogram():
    low, high = plots._shown_range(
        {"cifar10": HARD["outliers"][0], "svhn": HARD["outliers"][1]}, "cifar10"
    )
    assert -12 < low < -2 and 2 < high < 12
    low, high = plots._shown_range(
        {"cifar10": RANDOM.normal(size=500), "far": RANDOM.normal(1e6, 1, size=500)}, "cifar10"
    )
    assert low < -2 and 3 < high < 40
    edges = np.linspace(low, high, 11)
    assert plots._shares(np.array([1e6, -np.inf, 0.0, 0.0]), edges).sum() == 1, (
        "what lies outside is counted at the edges"
    )


def test_many_detectors_go_into_further_files(tmp_path):
    scores = made_scores([f"detector{i}" for i in range(13)], ["svhn"], n=20)
    assert [p.name for p in plots.score_histograms(scores, "cifar10", tmp_path / "h.png")] == [
        "h_1.png",
        "h_2.png",
    ]
    assert [p.name for p in plots.roc_curves(scores, "cifar10", tmp_path / "r.png")] == [
        "r_1.png",
        "r_2.png",
    ]
    assert [len(page) for page in plots._chunks(list(scores), 12)] == [7, 6]


def test_a_detector_may_lack_a_set_but_not_the_id_scores(tmp_path):
    scores = made_scores()
    del scores["msp"]["dtd"]
    assert_picture(plots.score_histograms(scores, "cifar10", tmp_path / "h.png")[0])
    assert_picture(plots.roc_curves(scores, "cifar10", tmp_path / "r.png")[0])
    with pytest.raises(ValueError, match="cifar100"):
        plots.score_histograms(scores, "cifar100", tmp_path / "x.png")
    with pytest.raises(ValueError, match="by"):
        plots.roc_curves(scores, "cifar10", tmp_path / "x.png", by="set")


def test_thinned_curve_keeps_its_ends_and_its_shape():
    fpr = np.sort(RANDOM.random(50_000))
    tpr = np.sort(RANDOM.random(50_000))
    fpr[[0, -1]], tpr[[0, -1]] = (0, 1), (0, 1)
    x, y = plots._thinned(fpr, tpr)
    assert x.size <= plots.CURVE_POINTS and (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
    assert np.abs(np.interp(fpr, x, y) - tpr).max() < 0.01


def test_figures_leave_matplotlibs_state_alone(tmp_path):
    import matplotlib.pyplot as pyplot

    pyplot.get_backend()  # chosen at the first question
    before = pyplot.rcParams.copy()
    plots.roc_curves(made_scores(n=20), "cifar10", tmp_path / "r.png")
    plots.score_histograms(made_scores(n=20), "cifar10", tmp_path / "h.png")
    assert (
        pyplot.get_fignums() == []
        and {k: v for k, v in pyplot.rcParams.items() if v != before[k]} == {}
    )


def test_rows_from_scores_are_in_the_order_of_the_detectors_and_name_a_nan():
    scores = {
        "known": {"a": RANDOM.normal(size=30), "b": RANDOM.normal(size=30)},
        "x": {"a": RANDOM.normal(size=20), "b": RANDOM.normal(size=20)},
        "y": {"a": RANDOM.normal(size=10), "b": RANDOM.normal(size=10)},
    }
    made = report.result_rows(scores, "known", {"y": "far"})
    assert [(r["detector"], r["dataset"], r["group"], r["n_id"], r["n_ood"]) for r in made] == [
        ("a", "x", "", 30, 20),
        ("a", "y", "far", 30, 10),
        ("b", "x", "", 30, 20),
        ("b", "y", "far", 30, 10),
    ]
    expected = evaluate(scores["known"]["b"], scores["y"]["b"])
    assert {m: made[3][m] for m in Metrics._fields} == expected._asdict()
    scores["y"]["b"] = np.full(10, np.nan)
    with pytest.raises(InputError, match="b on y: 10 of 10 are NaN"):
        report.result_rows(scores, "known")


def test_further_keys_of_metrics_json(rows, facts):
    content = json.loads(Report(rows, facts, more={"jitter": 0.5, "gone": math.nan}).json())
    assert content["jitter"] == 0.5 and content["gone"] is None and len(content["rows"]) == 8


def test_average_of_the_paper_is_left_out_when_more_sets_were_evaluated(facts):
    paper = {"a": {"x": {"fpr95": 0.1}, "average": {"fpr95": 0.3}}}
    made = [made_row("a", s) for s in ("x", "y", "z")]
    text = Report(made, facts, paper=paper, datasets=("x", "y")).markdown()
    assert "/" not in table(text, "FPR95")["a"]["average"] and "do not include z." in text
    assert table(text, "FPR95")["a"]["x"] == "10.00 / 50.00"
