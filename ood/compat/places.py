"""Modules that are a line in a table: `ood.compat.detector.energy` and its like.

pytorch-ood has one file per class, and scripts import from these files. Our classes live together,
a family a file, so such a path only has to name what is there already. Fifty files of one import
each would say no more than a table does. The modules are made when their package is imported. They
are in sys.modules then, so that every way to import them works. Pickles name the module where a
class is defined, which is a file. A module with code of its own, such as `detector.openmax.numpy`,
is a file too.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType


def open_places(package: str, table: dict[str, str], *homes: ModuleType) -> None:
    """Make the modules of a table below a package that is being imported.

    Args:
        package: its name, such as "ood.compat.detector".
        table: {module: its public names, with spaces between them}.
        homes: the modules that define these names.
    """
    defined = {name: thing for home in homes for name, thing in vars(home).items()}
    for place, names in table.items():
        module = ModuleType(f"{package}.{place}", f"{names.replace(' ', ', ')} of {package}.")
        module.__spec__, module.__package__ = ModuleSpec(module.__name__, None), package
        module.__all__ = names.split()
        vars(module).update((name, defined[name]) for name in module.__all__)
        sys.modules[module.__name__] = module
        setattr(sys.modules[package], place, module)
