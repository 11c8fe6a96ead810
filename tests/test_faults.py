"""Bad input ends in one clear line and leaves nothing behind: every row of tests/faults."""

from __future__ import annotations

import importlib
import pkgutil

import faults
import pytest

MODULES = [module.name for module in pkgutil.iter_modules(faults.__path__)]
ROWS = [
    pytest.param(fault, id=f"{name}-{fault.name}")
    for name in MODULES
    for fault in importlib.import_module(f"faults.{name}").ROWS
]


@pytest.mark.parametrize("fault", ROWS)
def test_fault(fault, tmp_path, call_script):
    if fault.prepare:
        fault.prepare(tmp_path)
    if fault.script:
        done = call_script(fault.script, *fault.command(tmp_path))
        message = done.stderr
        assert done.returncode == fault.exit_code, message or done.stdout
        assert "Traceback" not in message, message
    else:
        with pytest.raises(fault.error) as raised:
            fault.action(tmp_path)
        message = str(raised.value)
    missing = [word for word in fault.words if word.lower() not in message.lower()]
    assert not missing, f"{missing} not in: {message}"
    left = [path for pattern in fault.left_behind for path in tmp_path.glob(pattern)]
    assert not left, left


def test_every_name_is_used_once():
    for name in MODULES:
        names = [fault.name for fault in importlib.import_module(f"faults.{name}").ROWS]
        assert len(names) == len(set(names)), name
