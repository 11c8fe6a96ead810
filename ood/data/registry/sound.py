"""Rows of the table: sound. `load` gives images, so it refuses these; `ood.compat` reads them."""

from __future__ import annotations

from ood.data.registry.entry import Archive, DatasetInfo

ROWS = (
    DatasetInfo(
        "fsdd", "id", "parts", ("Jakobovski-free-spoken-digit-dataset-e9e1155",),
        {"test": ("",)}, num_classes=10, class_names=tuple("0123456789"),
        layout=(
            "Jakobovski-free-spoken-digit-dataset-e9e1155/recordings/<digit>_<speaker>_<n>.wav: "
            "spoken digits, 8 kHz, version 1.0.8"
        ),
        source="https://github.com/Jakobovski/free-spoken-digit-dataset", licence="CC BY-SA 4.0",
        archives=(
            Archive(
                (
                    "https://zenodo.org/record/1342401/files/Jakobovski/"
                    "free-spoken-digit-dataset-v1.0.8.zip",
                ),
                "Jakobovski-free-spoken-digit-dataset-e9e1155",
                "Jakobovski-free-spoken-digit-dataset-e9e1155",
                md5="54f48186ecb1d5ac4e971143086d529b",
            ),
        ),
    ),
)
