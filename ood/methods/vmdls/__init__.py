"""VMDLS (Dinari & Freifeld, UAI 2022). `VMDLS` is its face, `AutoEncoder` weights its scores.

settings: the keys of a config; loss, network: what is trained; training: one run; gaussians: the
statistics of the test; method: the trained network; open_set: the paper's metrics; autoencoder: the
reconstruction error; figures: pictures; flags, command: the test with the authors' flags.
"""

from ood.methods.vmdls.autoencoder import AutoEncoder
from ood.methods.vmdls.method import VMDLS
from ood.methods.vmdls.settings import Settings

__all__ = ["VMDLS", "AutoEncoder", "Settings"]
