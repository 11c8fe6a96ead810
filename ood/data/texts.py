"""Texts as arrays of token numbers: load a set, cut it into words, number the words.

    known = texts.load("newsgroups20", "train", "datasets", download=True)
    vocabulary = Vocabulary.of(map(words, known.texts))
    tokens = TokenSet.of(known, vocabulary)         # an ImageSet whose "images" are (L,) int64

A `TokenSet` goes where an `ImageSet` goes: `ood.outputs.extract` with the preprocess `AS_IT_IS`,
`ood.evaluation.scoring.evaluate`, `ood.training.batches.ImageBatches`.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from ood.config import InputError
from ood.data.images import ImageSet, spread
from ood.data.loading import find
from ood.data.registry import info

UNKNOWN, PADDING = 0, 1  # the two tokens that are no words, numbered as torchtext does
LENGTH = 100  # words of a text; the rest is cut off (the authors' fix_length)
SIZE = 10_000  # words of a vocabulary
SENTENCE = (3, 60)  # fewest and most words of a sentence that is kept
END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'(“])")


@dataclass(frozen=True)
class Texts:
    """A set of N texts.

    Attributes:
        texts: N strings.
        labels: (N,) int64; -1 for a set without classes.
        class_names: by label, where the files name the classes.
    """

    name: str
    split: str
    texts: Sequence[str]
    labels: np.ndarray
    num_classes: int | None = None
    class_names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def limited(self, limit: int | None) -> Texts:
        """Choose at most `limit` texts, evenly spread over the set, every class kept."""
        rows = np.arange(len(self))[spread(len(self), limit, self.labels)]
        return replace(self, texts=[self.texts[row] for row in rows], labels=self.labels[rows])

    def sentences(self) -> Texts:
        """Cut the texts into sentences, without labels; see `sentences`."""
        found = sentences(self.texts)
        return Texts(self.name, self.split, found, np.full(len(found), -1))


def load(
    name: str,
    split: str,
    data_dir: str | Path = "datasets",
    *,
    download: bool = False,
    limit: int | None = None,
) -> Texts:
    """Load a set of texts.

    Args:
        name: one of the sets of ood/data/registry/text.py.
        split: "train", "test", or "val" where the set has one.
        data_dir: the data root; sets inside packages do not need it.
        download: fetch the set if it is missing. Checksums are verified.
        limit: at most this many texts, see `Texts.limited`.

    Raises: MissingData, DamagedData, InputError as `ood.data.load` does.
    """
    row = info(name)
    if row.reader != "texts":
        raise InputError(f"data set '{row.name}' holds no texts; ood.data.load reads it")
    if limit is not None and limit < 1:
        raise InputError(f"a limit of {limit} texts makes no sense; it must be at least 1")
    found = find(row, split, data_dir, download=download)
    outliers = found.labels is None or row.role == "ood"
    labels = np.full(len(found), -1) if outliers else found.labels
    whole = Texts(row.name, split, found.images, labels, row.num_classes, row.class_names)
    return whole.limited(limit)


# --- words and sentences


def words(text: str) -> list[str]:
    """Cut a text at white space, in lower case: the tokenizer of the outlier-exposure paper."""
    return text.lower().split()


def letters(text: str, shortest: int = 3, without: Collection[str] = ()) -> list[str]:
    """Cut a text into words of letters, in lower case; digits and punctuation separate words.

    Args:
        shortest: leave out shorter words. 3 is what 20 Newsgroups has in its "no-short" form.
        without: leave out these words, for example `stop_words.STOP_WORDS`.
    """
    found = re.findall(r"[^\W\d_]+", text.lower())
    return [word for word in found if len(word) >= shortest and word not in without]


def sentences(texts: Iterable[str]) -> list[str]:
    """Cut texts into sentences of 3 to 60 words; leave out headings and what begins with a digit.

    Source: reformat_wikitext.py of the outlier-exposure authors, who cut with NLTK's punkt model.
        Here a sentence ends at ". ", "! " or "? " before a capital letter or a quotation mark.
    """
    least, most = SENTENCE
    parts = (part for text in texts if not text.startswith("=") for part in END.split(text))
    return [
        part
        for part in map(str.strip, parts)
        if least <= len(part.split()) <= most and not part[0].isdigit() and part[0] != "@"
    ]


class Vocabulary:
    """Numbers for words. 0 stands for every word that is not in it, 1 for padding.

    Args:
        words: the words, from number 2 on.
    """

    def __init__(self, words: Sequence[str]):
        self.words = list(words)
        self._numbers = {word: number for number, word in enumerate(self.words, PADDING + 1)}
        if len(self._numbers) != len(self.words):
            raise InputError("a vocabulary has every word once")

    @classmethod
    def of(cls, texts: Iterable[Iterable[str]], size: int = SIZE, least: int = 1) -> Vocabulary:
        """Take the `size` most frequent words that come at least `least` times.

        Words that are equally frequent come in the order of the alphabet.
        """
        counts = Counter(word for text in texts for word in text)
        ranked = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
        return cls([word for word, count in ranked[:size] if count >= least])

    def __len__(self) -> int:
        return len(self.words) + PADDING + 1

    def __contains__(self, word: str) -> bool:
        return word in self._numbers

    def __call__(self, words: Iterable[str]) -> list[int]:
        """Give the numbers of words."""
        return [self._numbers.get(word, UNKNOWN) for word in words]


# --- batches


def padded(rows: Sequence[Sequence[int]], length: int | None = None) -> Tensor:
    """Put token numbers into one array (N, L) int64: the first L of each, padding in front.

    Args: length: L; None: that of the longest row, at least 1.
    """
    length = max([1, *map(len, rows)]) if length is None else length
    tokens = torch.full((len(rows), length), PADDING)
    for place, row in enumerate(rows):
        kept = row[:length]
        if len(kept):
            tokens[place, length - len(kept) :] = torch.as_tensor(kept)
    return tokens


def packed(rows: Sequence[Sequence[int]], length: int | None = None) -> PackedSequence:
    """Pack token numbers without padding: the first `length` of each. An empty row is UNKNOWN."""
    kept = [torch.as_tensor(row[:length] if len(row) else [UNKNOWN]) for row in rows]
    return pack_sequence(kept, enforce_sorted=False)


class Collate:
    """Make batches of (words, label) pairs, as `collate_fn` of a DataLoader.

        Collate(vocabulary)([(["a", "b"], 3), (["c"], -1)]) -> tokens (2, 2), labels (2,)

    Args:
        tokenizer: cuts what the data set gives into words; None: it gives words.
        length: of the texts; None: as long as the longest of the batch.
        pack: give a PackedSequence, which holds no padding.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        tokenizer: Callable[[str], list[str]] | None = None,
        length: int | None = None,
        pack: bool = False,
    ):
        self.vocabulary, self.tokenizer = vocabulary, tokenizer
        self.length, self.pack = length, pack

    def __call__(self, batch: Sequence[tuple]) -> tuple[Tensor | PackedSequence, Tensor]:
        texts, labels = zip(*batch)
        rows = [self.vocabulary(self.tokenizer(t) if self.tokenizer else t) for t in texts]
        tokens = packed(rows, self.length) if self.pack else padded(rows, self.length)
        return tokens, torch.as_tensor(np.asarray(labels, dtype=np.int64))


class TokenSet(ImageSet):
    """Texts as token numbers, in the place of an image set: `shape` is (L,), batches are int64.

    Args:
        tokens: (N, L) int64.
        labels: (N,).
    """

    def __init__(self, tokens: np.ndarray, labels: np.ndarray, **details):
        tokens = np.ascontiguousarray(tokens, dtype=np.int64)
        source = hashlib.blake2b(tokens, digest_size=16).hexdigest()
        super().__init__(labels=labels, shape=tokens.shape[1:], source=source, **details)
        self._tokens = tokens

    @classmethod
    def of(
        cls,
        texts: Texts,
        vocabulary: Vocabulary,
        tokenizer: Callable[[str], list[str]] = words,
        length: int = LENGTH,
    ) -> TokenSet:
        """Number the words of a set: the first `length` of each text, padding in front."""
        rows = [vocabulary(tokenizer(text)[:length]) for text in texts.texts]
        return cls(
            padded(rows, length).numpy(),
            texts.labels,
            name=texts.name,
            split=texts.split,
            num_classes=texts.num_classes,
            class_names=texts.class_names,
        )

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Give the tokens (L,) of one text, and its label."""
        return self.read([index])[0], int(self.labels[index])

    def _fetch(self, rows):
        return torch.from_numpy(np.array(self._tokens[rows]))


@dataclass(frozen=True)
class AsItIs:
    """The preprocess of a TokenSet: batches go into the network as they are."""

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __call__(self, batch: Tensor) -> Tensor:
        return batch


AS_IT_IS = AsItIs()
