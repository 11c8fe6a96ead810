"""Bad inputs and faults as a table: what is done, how it must end, what must not be left behind.

Each module of this package has a list ROWS of `Fault`. tests/test_faults.py runs them all. A row is
either a command line of a script (run inside this process) or a function that must raise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Fault:
    """One bad input or fault.

    Attributes:
        name: a few words; the id of the test.
        script: the script to run, e.g. "eval_ood.py"; None: call `action` instead.
        arguments: its command line. "{tmp}" stands for an empty folder of this row's own.
        action: function of that folder that must raise `error`. It is called instead of a script.
        error: what `action` must raise.
        exit_code: of the script; 2 is bad input.
        words: parts of the message, each of which must be there (case does not matter).
        prepare: function of the folder that lays files before the fault.
        left_behind: patterns below the folder that no file may match afterwards.
    """

    name: str
    script: str | None = None
    arguments: tuple = ()
    action: Callable[[Path], object] | None = None
    error: type[BaseException] = ValueError
    exit_code: int = 2
    words: tuple[str, ...] = ()
    prepare: Callable[[Path], object] | None = None
    left_behind: tuple[str, ...] = ("**/*.tmp", "out", "out/**/*")

    def command(self, folder: Path) -> list[str]:
        return [str(word).replace("{tmp}", str(folder)) for word in self.arguments]
