"""From a name to a data set on disk: download, unpack, prepare and check."""
