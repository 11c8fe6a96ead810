"""A fitted detector as a file, its threshold with a guarantee, and the scoring of pictures."""
