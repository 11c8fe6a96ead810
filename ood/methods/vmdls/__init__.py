"""VMDLS (UAI 2022)."""

from ood.methods.vmdls.autoencoder import AutoEncoder
from ood.methods.vmdls.method import VMDLS
from ood.methods.vmdls.settings import Settings

__all__ = ["VMDLS", "AutoEncoder", "Settings"]
