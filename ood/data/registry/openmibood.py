"""Rows of the table: OpenMIBOOD, three benchmarks of medical images.

Lists name the images of each test, as in OpenOOD. They are below imglists/, where pytorch-ood keeps
them too; the images are in the folder of the benchmark. OpenMIBOOD publishes no checksums.
pytorch-ood takes the sets with covariate shift for outliers; they have labels here.

Source: Gutbrod et al., "OpenMIBOOD", CVPR 2025, arXiv 2503.16247.
"""

from __future__ import annotations

from ood.data.registry.entry import Archive, DatasetInfo

SOURCE = "https://github.com/remic-othr/OpenMIBOOD"
LISTS_IN = "imglists"
LISTS = (
    "https://raw.githubusercontent.com/remic-othr/OpenMIBOOD/main/data/benchmark_imglist/",
    "https://cdn.jsdelivr.net/gh/remic-othr/OpenMIBOOD@main/data/benchmark_imglist/",
)
ID_SPLITS = {"train": ("",), "val": ("",), "test": ("",)}
OOD_SPLITS = {"val": ("",), "test": ("",)}
SCRIPTS = (
    f"Clone {SOURCE}, get the data as below, run the script named there "
    "(scripts/download/OpenMIBOOD/)\nand link or move its data/{folder} to {{data_dir}}/{folder}.\n"
)
STEPS = {
    "midog": SCRIPTS.format(folder="midog") + (
        "MIDOG++: download_midog.py fetches 65 GB from figshare and cuts out the cells.\n"
        "CCAgT: download_midog_ccagt.py. FNAC 2019: download_midog_fnac2019.py."
    ),
    "phakir": (
        "PhaKIR: ask for access at https://doi.org/10.5281/zenodo.16753918, and unpack "
        "phakir_openmibood.zip so that {data_dir}/phakir/Video_01 is there.\n"
        "EndoVis 2015 and 2018: register at https://endovissub-instrument.grand-challenge.org and\n"
        "https://endovissub2018-roboticscenesegmentation.grand-challenge.org, then prepare them "
        f"with download_phakir_endovis2015.py and ..2018.py\nof {SOURCE} "
        "(scripts/download/OpenMIBOOD/), and link its data/phakir/near to {data_dir}/phakir/near."
    ),
    "oasis": SCRIPTS.format(folder="oasis") + (
        "OASIS-3: ask for access at https://sites.wustl.edu/oasisbrains/home/access/ (OASIS-3: "
        "Longitudinal Multimodal Imaging),\n"
        "register at https://www.nitrc.org/account/register.php with the same e-mail, and download "
        "there, as one ZIP, the sessions All, the format\n"
        "NIFTI and the types CT, T1w, T2w, with project and subject in the file paths and a "
        "simplified structure; name it OASIS3.zip.\n"
        "pip install hd-bet==2.0.1 (brain extraction), then download_oasis3.py.\n"
        "ATLAS R2.0: https://fcon_1000.projects.nitrc.org/indi/retro/atlas.html (a form), then "
        "download_oasis3_atlas.py.\n"
        "BraTS 2023 glioma: https://www.synapse.org/Synapse:syn51156910 (registration), then "
        "download_oasis3_brats.py.\n"
        "CHAOS: download_oasis3_chaos.py."
    ),
}
COMMON = {
    "midog": dict(
        mean=(0.712, 0.496, 0.756), std=(0.167, 0.167, 0.110), size=50, resize=50,
        licence="MIDOG++ CC BY 4.0; CCAgT, FNAC 2019: see page",
    ),
    "phakir": dict(
        mean=(0.517, 0.361, 0.336), std=(0.166, 0.143, 0.137), size=360, resize=360,
        licence="terms of each source, see page",
    ),
    "oasis": dict(
        mean=(0.5,), std=(0.5,), channels=1, size=128, resize=128,
        licence="OASIS-3 data use agreement; terms of each source, see page",
    ),
}
# {benchmark: (folder, ID classes, ((name, list, with labels), ...), archives by name)}
BENCHMARKS = {
    "midog": (
        "midog", 3,
        (
            ("midog_csid_1b", "midog_1b", True), ("midog_csid_1c", "midog_1c", True),
            *((f"midog_{part}", f"midog_{part}", False) for part in "2 3 4 5 6a 6b 7".split()),
            ("midog_ccagt", "midog_ccagt", False), ("midog_fnac2019", "midog_fnac2019", False),
        ),
        {},
    ),
    "phakir": (
        "phakir", 7,
        (
            ("phakir_medium_smoke", "phakir_medium_smoke_csid", True),
            ("phakir_heavy_smoke", "phakir_heavy_smoke_csid", True),
            ("phakir_cholec", "phakir_cholec_near", False),
            ("phakir_endovis2015", "phakir_endovis2015_near", False),
            ("phakir_endovis2018", "phakir_endovis2018_near", False),
            ("phakir_kvasir", "phakir_kvasir_far", False),
            ("phakir_cataracts", "phakir_cataracts_far", False),
        ),
        {
            "phakir_cholec": Archive(
                ("https://zenodo.org/records/14921670/files/Cholec80_cropped.zip",),
                "phakir/near/Cholec80_cropped", "Cholec80_cropped",
            ),
            "phakir_kvasir": Archive(
                ("https://datasets.simula.no/downloads/kvasir-seg.zip",),
                "phakir/far/kvasir-seg", "Kvasir-SEG/images",
            ),
            "phakir_cataracts": Archive(
                ("https://zenodo.org/records/14924735/files/CATARACTS.zip",),
                "phakir/far/CATARACTS", "CATARACTS",
            ),
        },
    ),
    "oasis3": (
        "oasis", 2,
        (
            ("oasis3_scanner", "oasis3_scanner_csid", True),
            ("oasis3_t2w", "oasis3_t2w_csid", True),
            ("oasis3_atlas", "oasis3_atlas_near", False),
            ("oasis3_brats", "oasis3_brats_near", False),
            ("oasis3_ct", "oasis3_ct_near", False),
            ("oasis3_heart", "oasis3_heart_far", False),
            ("oasis3_chaos_inPhase", "oasis3_chaos_inPhase_far", False),
        ),
        {
            "oasis3_heart": Archive(
                (), "oasis/far/SegmentationDecathlon/Task02_Heart", "Task02_Heart",
                drive="1wEB2I6S6tQBVEPxir8cA5kFB8gTQadYY", file="Task02_Heart.tar",
            ),
        },
    ),
}


def _lists(benchmark: str) -> DatasetInfo:
    """Make the row of a benchmark's lists. Those of "val" are for tuning."""
    sets = [file for _, file, _ in BENCHMARKS[benchmark][2]]
    files = [("train", benchmark), *(("test", name) for name in (benchmark, *sets))]
    files += [("valid", name) for name in (benchmark, *sets)]
    places = [f"{benchmark}/{part}_{name}.txt" for part, name in files]
    return DatasetInfo(
        f"openmibood_{benchmark}", "ood", "parts", (f"{LISTS_IN}/{benchmark}",), OOD_SPLITS,
        layout=f"{LISTS_IN}/{benchmark}/{{train,valid,test}}_<set>.txt: the images of each test",
        source=SOURCE, licence="MIT (repository)",
        archives=tuple(
            Archive(
                tuple(url + place for url in LISTS), f"{LISTS_IN}/{place}", unpack=False,
                split="val" if "/valid_" in place else "test",
            )
            for place in places
        ),
    )


def _row(benchmark: str, name: str, file: str, labelled: bool, splits: dict) -> DatasetInfo:
    folder, classes, _, archives = BENCHMARKS[benchmark]
    archive = archives.get(name)
    parts = {"train": "train", "val": "valid", "test": "test"}
    return DatasetInfo(
        name, "id" if labelled else "ood", "imglist", (folder,), splits, **COMMON[folder],
        num_classes=classes if labelled else None,
        layout=f"{folder}/**, the images that {LISTS_IN}/{benchmark}/*_{file}.txt name",
        source=SOURCE, needs=(f"openmibood_{benchmark}",),
        archives=(archive,) if archive else (), steps="" if archive else STEPS[folder],
        options={
            "root": folder, "lists in": LISTS_IN,
            "lists": {split: f"{benchmark}/{parts[split]}_{file}.txt" for split in splits},
        },
    )


def _rows(benchmark: str) -> tuple[DatasetInfo, ...]:
    return (
        _lists(benchmark),
        _row(benchmark, benchmark, benchmark, True, ID_SPLITS),
        *(_row(benchmark, *row, OOD_SPLITS) for row in BENCHMARKS[benchmark][2]),
    )


ROWS = tuple(row for benchmark in BENCHMARKS for row in _rows(benchmark))
