"""The table of data sets: one row per set, in one file per family."""

from ood.data.registry.entry import Archive, DatasetInfo
from ood.data.registry.table import TABLE, info, is_folder_path, names

__all__ = ["TABLE", "Archive", "DatasetInfo", "info", "is_folder_path", "names"]
