"""Training: the loop, batches, the life of a run, and the training of a classifier."""
