"""pytorch-ood's data sets: img (images), txt (text), audio (sound), ossim (open-set splits).

Constructor arguments, labels and order of the items are those of pytorch-ood 0.4.0. The data come
from our registry: see `ood.compat.dataset.base`.
"""
