"""Find our networks: `ood.networks` where pip installed them, `models` in the clone.

The two packages `ood` and `models` never import each other. This module is the one place in `ood`
that finds the other at run time.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

INSTALLED, CLONE = "ood.networks", "models"


def package() -> ModuleType:
    """Return the package of our networks.

    In the clone, that is the folder `models` beside `ood`. If another package of that name comes
    first on the path, ours is loaded as `ood.networks`.

    Raises: ImportError if neither is there.
    """
    file = Path(__file__).resolve().parents[2] / CLONE / "__init__.py"
    loaded = getattr(sys.modules.get(CLONE), "__file__", None)
    if loaded is not None and Path(loaded).resolve() == file:
        return sys.modules[CLONE]
    if importlib.util.find_spec(INSTALLED) is not None:
        return importlib.import_module(INSTALLED)
    if _found(CLONE) == file:
        return importlib.import_module(CLONE)
    if not file.is_file():
        raise ImportError(f"the networks are neither installed ({INSTALLED}) nor in {file.parent}")
    return _load_as(INSTALLED, file)


def submodule(name: str) -> ModuleType:
    """Return a module of that package, for example submodule("wideresnet")."""
    return importlib.import_module(f"{package().__name__}.{name}")


def _found(name: str) -> Path | None:
    """Return the file that `import name` would run, or None."""
    try:
        spec = importlib.util.find_spec(name)
    except ValueError:  # a module without a spec, as notebooks make them
        return None
    return Path(spec.origin).resolve() if spec is not None and spec.origin else None


def _load_as(name: str, file: Path) -> ModuleType:
    """Import the package whose __init__.py is `file` under another name."""
    spec = importlib.util.spec_from_file_location(
        name, file, submodule_search_locations=[str(file.parent)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
