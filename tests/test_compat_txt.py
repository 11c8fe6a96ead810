"""`ood.compat.dataset.txt` against pytorch-ood: signatures, items, labels, downloads."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import pickle
import warnings

import numpy as np
import pytest
import text_toys
import torch
from download_toys import Server, make_zip
from torch.utils.data import DataLoader

from ood.compat.dataset import txt
from ood.compat.dataset.base import DatasetError
from ood.data.registry import info, table

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytorch_ood = pytest.importorskip("pytorch_ood.dataset.txt")

SETS = {  # name: the keyword arguments of its splits
    "Multi30k": ({"train": True}, {"train": False}),
    "NewsGroup20": ({"train": True}, {"train": False}),
    "Reuters8": ({"train": True}, {"train": False}),
    "Reuters52": ({"train": True}, {"train": False}),
    "WikiText2": tuple({"split": split} for split in ("train", "test", "val")),
    "WikiText103": tuple({"split": split} for split in ("train", "test", "val")),
    "WMT16Sentences": ({},),
}
EVERY = [(name, chosen) for name, choices in SETS.items() for chosen in choices]


def test_all_names_are_there():
    assert sorted(SETS) == sorted(txt.__all__)
    assert sorted(SETS) == sorted(n for n, v in vars(pytorch_ood).items() if inspect.isclass(v))


@pytest.mark.parametrize("name", SETS)
def test_signatures_are_those_of_pytorch_ood(name):
    def arguments(kind):
        return [(p.name, p.default) for p in inspect.signature(kind).parameters.values()]

    assert arguments(getattr(txt, name)) == arguments(getattr(pytorch_ood, name))


def test_the_modules_have_the_same_names():
    from pytorch_ood.dataset.txt import stop_words as theirs

    from ood.compat.dataset.txt import multi30k, newsgroups, reuters, stop_words, wiki, wmt16

    assert sorted(stop_words.stop_words) == sorted(theirs.stop_words)
    assert reuters.Reuters8 is txt.Reuters8 and wiki.WikiText103 is txt.WikiText103
    assert multi30k.Multi30k and newsgroups.NewsGroup20 and wmt16.WMT16Sentences


@pytest.mark.parametrize("name, chosen", EVERY)
def test_the_same_files_give_the_same_items(name, chosen, tmp_path):
    text_toys.publish(tmp_path, getattr(txt, name).row)
    ours = getattr(txt, name)(tmp_path, **chosen)
    theirs = getattr(pytorch_ood, name)(tmp_path, **chosen)
    assert len(ours) == len(theirs._data)
    items = [theirs[index] for index in range(len(ours))]
    assert [ours[index] for index in range(len(ours))] == items
    assert all(type(label) is int for _, label in ours)


@pytest.mark.parametrize("name", SETS)
def test_facts_of_the_files_are_those_of_pytorch_ood(name):
    ours, theirs = getattr(txt, name), getattr(pytorch_ood, name)
    for fact in vars(theirs):
        if fact.endswith(("url", "md5", "filename", "filenames", "base_dir")):
            found, wanted = getattr(ours, fact), getattr(theirs, fact)
            if fact.endswith("url"):  # two spellings of GitHub's
                found, wanted = (
                    u.partition("hendrycks/")[2].replace("raw/", "") or u for u in (found, wanted)
                )
            assert found == wanted, fact


def test_labels_and_names_of_classes(tmp_path):
    assert txt.NewsGroup20.class_names == pytorch_ood.NewsGroup20.class_names
    assert txt.Reuters52.class2index == pytorch_ood.Reuters52.class2index
    assert list(txt.Reuters8.class2index)[:3] == ["acq", "crude", "earn"]
    text_toys.publish(tmp_path, "newsgroups20")
    ours = txt.NewsGroup20(tmp_path, train=False)
    assert ours.class_map == pytorch_ood.NewsGroup20(tmp_path, train=False).class_map
    assert set(ours.labels) == set(range(20))


def test_transforms_loader_and_pickle(tmp_path):
    text_toys.publish(tmp_path, "multi30k")
    made = txt.Multi30k(tmp_path, transform=str.upper, target_transform=lambda y: y - 4)
    text, label = made[0]
    assert text == text.upper() != text.lower() and label == -5
    plain = txt.Multi30k(str(tmp_path))
    batches = list(DataLoader(plain, batch_size=3))
    assert sum(len(texts) for texts, _ in batches) == len(plain) == 7
    assert set(np.concatenate([y for _, y in batches])) == {-1}
    assert pickle.loads(pickle.dumps(plain))[3] == plain[3]


def test_wrong_split_and_missing_files(tmp_path):
    with pytest.raises(ValueError, match="Invalid split: valid"):
        txt.WikiText2(tmp_path, "valid")
    for name, choices in SETS.items():
        with pytest.raises(FileNotFoundError, match="give download=True"):
            getattr(txt, name)(tmp_path, **choices[0])


@pytest.fixture
def server():
    running = Server()
    yield running
    running.close()


@pytest.mark.parametrize("name", ["NewsGroup20", "WikiText2"])
def test_download_fetches_one_split_and_enforces_its_checksum(name, server, tmp_path, monkeypatch):
    """A local publisher has the real layout."""
    row, made = info(getattr(txt, name).row), []
    text_toys.publish(tmp_path / "published", row.name)
    for archive in row.archives:
        path, place = f"/{archive.name}", tmp_path / "published" / archive.place
        if archive.unpack:
            files = {f"{archive.inside}/{f.name}": f.read_bytes() for f in place.iterdir()}
            make_zip(tmp_path / archive.name, files)
            place = tmp_path / archive.name
        server.files[path] = place.read_bytes()
        md5 = hashlib.md5(server.files[path]).hexdigest()
        made.append(dataclasses.replace(archive, urls=(server.address + path,), md5=md5))

    def put(archives):
        little = dataclasses.replace(row, archives=tuple(archives), count={})
        monkeypatch.setitem(table.TABLE, row.name, little)

    put(made)
    chosen = SETS[name][1]
    ours = getattr(txt, name)(tmp_path / "root", **chosen, download=True)
    theirs = getattr(pytorch_ood, name)(tmp_path / "root", **chosen)
    assert len(ours) == len(theirs) and ours[1] == theirs[1]
    assert len(server.seen) == 1  # where each split has a file, only that of this one
    getattr(txt, name)(tmp_path / "root", **chosen, download=True)
    assert len(server.seen) == 1
    put(dataclasses.replace(archive, md5="0" * 32) for archive in made)
    with pytest.raises(DatasetError, match="md5"):
        getattr(txt, name)(tmp_path / "other", **chosen, download=True)


def test_detectors_of_both_libraries_score_texts_alike(tmp_path):
    """The words of items become batches of tokens, and a GRU gives logits and features.

    Ranks are compared: the distances of the two libraries differ by a factor.
    """
    from pytorch_ood import detector as theirs

    from models.gru import GRUClassifier
    from ood.compat import detector as ours
    from ood.data.texts import Collate, Vocabulary, words

    text_toys.publish(tmp_path, "newsgroups20", per_class=8)
    text_toys.publish(tmp_path, "multi30k")
    known = txt.NewsGroup20(tmp_path)
    vocabulary = Vocabulary.of(words(text) for text, _ in known)
    collate = Collate(vocabulary, words, length=8)
    loader = DataLoader(known + txt.Multi30k(tmp_path), batch_size=16, collate_fn=collate)
    train = DataLoader(known, batch_size=16, collate_fn=collate)
    torch.manual_seed(0)
    network = GRUClassifier(20, len(vocabulary)).eval()
    for name, model in (
        ("MaxSoftmax", network),
        ("EnergyBased", network),
        ("Mahalanobis", network.features),
    ):
        scores = []
        for library in (ours, theirs):
            made = getattr(library, name)(model)
            if name == "Mahalanobis":
                made.to("cpu").fit(train)
            scores.append(torch.cat([made(tokens).detach() for tokens, _ in loader]))
        one, other = (s.double().argsort().argsort().double() for s in scores)
        assert torch.corrcoef(torch.stack((one, other)))[0, 1] > 0.99, name
