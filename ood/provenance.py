"""The provenance of a result: command, settings, versions, machine and digests."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch

from ood.files import plain


def provenance(command, config, seed: int | None, device, digests: dict, seconds: dict) -> dict:
    """Collect everything that is needed to judge and repeat a run, as plain JSON values.

    Args:
        command: list of words (sys.argv), or text.
        config: the resolved settings, a dataclass or a dict.
        seed: of the run; None: nothing was random.
        device: a torch.device, or text that starts with its name.
        digests: {what: hex} of weights and data.
        seconds: {stage: seconds}.
    """
    import torchvision

    where = str(device).partition(" ")[0]  # 'cuda:0' of 'cuda:0 (NVIDIA H100)'
    on_gpu = where.startswith("cuda") and torch.cuda.is_available()
    gpu = torch.cuda.get_device_name(where) if on_gpu else None
    return plain(
        {
            "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "command": command if isinstance(command, str) else shlex.join(map(str, command)),
            "config": config,
            "seed": seed,
            "device": str(device),
            "digests": digests,
            "seconds": seconds,
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "torchvision": torchvision.__version__,
                "numpy": np.__version__,
            },
            "git": _git_revision(Path(__file__).resolve().parent.parent),
            "machine": {
                "platform": platform.platform(),
                "cpu": _cpu_name(),
                "cpu_count": os.cpu_count(),
                "threads": torch.get_num_threads(),
                "gpu": gpu,
            },
        }
    )


def _git_revision(root: Path) -> dict | None:
    """Return {"revision", "dirty"} if `root` is a git checkout and git is installed, else None."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(root), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
        return done.stdout.strip()

    if not (root / ".git").exists():
        return None
    try:
        changes = git("status", "--porcelain", "--untracked-files=no")
        return {"revision": git("rev-parse", "HEAD"), "dirty": bool(changes)}
    except (OSError, subprocess.SubprocessError):
        return None


def _cpu_name() -> str:
    if sys.platform.startswith("linux"):
        try:
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
        except OSError:
            pass
    return platform.processor() or platform.machine()
