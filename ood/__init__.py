"""Out-of-distribution detection: data, one-pass outputs, detectors, methods, metrics and reports.

One convention everywhere: a score is larger for outliers, and an outlier's label is negative.

    guard = ood.guard(network, train_images, detector="vim")
    guard(images).accepted

`guard` and `Guard` are those of `ood.deployment.guard`, which is loaded on first use.
"""

import os
import sys

__version__ = "0.1.0"  # the only place; pyproject.toml reads it

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # see models/__init__.py


GUARD = ("guard", "Guard", "Decision")


def __getattr__(name: str):
    if name not in GUARD:
        raise AttributeError(f"module 'ood' has no attribute '{name}'")
    from ood.deployment import guard

    return getattr(guard, name)


def catch_interrupts() -> None:
    """Let Ctrl-C end a script with one line and exit code 130 while torch is still loading.

    A script calls this before it imports anything large. Afterwards `ood.cli.run` takes over.
    """
    others = sys.excepthook

    def say(kind, error, trace):
        if not issubclass(kind, KeyboardInterrupt):
            return others(kind, error, trace)
        print("interrupted", file=sys.stderr, flush=True)
        os._exit(130)

    sys.excepthook = say
