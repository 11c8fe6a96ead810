"""The commands that docs/ prints: their scripts and flags are there, and a small form of each."""

import importlib.util
import re
import shlex
import subprocess

import pytest
from conftest import ROOT

spec = importlib.util.spec_from_file_location(
    "run_docs_commands", ROOT / "scripts" / "run_docs_commands.py"
)
runner = importlib.util.module_from_spec(spec)
spec.loader.exec_module(runner)
COMMANDS = [
    command for page in sorted((ROOT / "docs").glob("*.md")) for command in runner.printed(page)
]


def test_every_record_has_its_command():
    records = list((ROOT / "docs" / "data").glob("*.json"))
    assert len(COMMANDS) >= len(records) > 10


@pytest.mark.parametrize("script", sorted({command.script for command in COMMANDS}))
def test_scripts_have_the_flags_that_are_printed(script, call_script):
    """Also those of the small form."""
    asked = {word for c in COMMANDS if c.script == script for word in runner.small(c)}
    asked |= {word for c in COMMANDS if c.script == script for word in shlex.split(c.text)}
    there = set(re.findall(r"-\w+", call_script(script, "-h").stdout))
    assert {word for word in asked if re.fullmatch(r"-[a-z_]+", word)} <= there


def test_commands_name_no_folder_of_another_command():
    """A network is named by the seed that trains it, not by what another command left."""
    for command in COMMANDS:
        assert "-checkpoint_name" not in command.text, command


@pytest.fixture
def page(tmp_path, monkeypatch):
    """A page with four commands, and a repository in which they mean something."""
    root = tmp_path / "root"
    (root / "datasets").mkdir(parents=True)
    (root / "datasets" / "README.md").write_text("data")
    (root / "say.py").write_text(
        "import sys, pathlib\n"
        "left = pathlib.Path('left'); print('left' if left.exists() else 'clean'); left.touch()\n"
        "sys.exit(int(sys.argv[1]) + left.is_dir())\n"
    )
    (root / "need.py").write_text("import sys; sys.exit('no cifar10: python3 download_data.py x')")
    git = ["git", "-C", str(root), "-c", "user.name=x", "-c", "user.email=x@example.com"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *words], check=True)
    file = tmp_path / "page.md"
    file.write_text(
        "Command: `python3 say.py 0 -record`. Seeds: 1.\n\n```\npython3 say.py 0\n```\n"
        "Command: `python3 need.py`.\nCommand: `python3 say.py 0 -checkpoint x.pt`.\n"
    )
    monkeypatch.setattr(runner, "ROOT", root)
    monkeypatch.setattr(runner, "SMALL", {"say.py": "-limit 3", "need.py": ""})
    return file


def outcomes(page, tmp_path, **flags):
    parsed = runner.parser.parse_args(["-pages", str(page)])
    for name, value in flags.items():
        setattr(parsed, name, value)
    return [runner.run(c, tmp_path / "clone", parsed) for c in runner.printed(page)]


def test_each_command_runs_in_a_clean_clone_or_says_what_it_needs(page, tmp_path):
    first, second, third, fourth = outcomes(page, tmp_path)
    assert first == second == ("", 0)
    assert third[1] is None and third[0].startswith("needs data: no cifar10")
    assert fourth == ("needs the file x.pt (-weights_dir)", None)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "x.pt").touch()
    assert outcomes(page, tmp_path, weights_dir=[tmp_path / "weights"])[3] == ("", 0)


def test_a_failing_command_is_told_with_its_last_line(page, tmp_path):
    """Two runs find a clean folder each: the first leaves a file behind."""
    page.write_text("Command: `python3 say.py 3`.\nCommand: `python3 say.py 3`.\n")
    assert outcomes(page, tmp_path) == [("clean", 3)] * 2


def test_the_small_form_records_nothing(page):
    command, other, *_ = runner.printed(page)
    assert runner.small(command) == ["python3", "say.py", "0", "-limit", "3"]
    assert command.line == 1 and other.line == 4
