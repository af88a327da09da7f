"""The way in: help, version, exit codes, errors in one line."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import clearn as package
from clearn.cli import commands
from clearn.errors import UserError
from tests.clearn.cli.conftest import Clearn

NAMES = ("run", "compare", "resume", "report", "list", "doctor")


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_help_lists_the_commands(arguments: tuple[str, ...], clearn: Clearn) -> None:
    code, out, err = clearn(*arguments)
    assert (code, err) == (0, "")
    for name in NAMES:
        assert f"\n  {name} " in out


def test_version(clearn: Clearn) -> None:
    assert clearn("--version") == (0, f"clearn {package.__version__}\n", "")


@pytest.mark.parametrize("name", NAMES)
def test_help_of_a_command_begins_with_its_docstring(name: str, clearn: Clearn) -> None:
    code, out, err = clearn(name, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: clearn {name}")
    assert (commands.COMMANDS[name].__doc__ or "").partition("\n")[0] in out
    assert "Args:" not in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("rum",), "command: 'rum' is unknown; did you mean run"),
        (("compare",), "experiment: missing; expected a path"),
        (("compare", "a.yaml", "--jbs", "2"), "option: '--jbs' is unknown; did you mean --jobs?"),
        (("compare", "a.yaml", "--jobs", "x"), "jobs: 'x' is not valid: expected an integer"),
        (("list", "strategy"), "kind: 'strategy' is not valid: expected strategies or streams"),
        (("doctor", "now"), "unrecognized arguments: now"),
    ],
)
def test_errors_are_one_line_on_stderr(
    arguments: tuple[str, ...], message: str, clearn: Clearn
) -> None:
    code, out, err = clearn(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"clearn: error: {message}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("a\nb"), "clearn: error: a b\n"),
        (
            PermissionError(13, "Permission denied", "x/y"),
            "clearn: error: x/y: Permission denied\n",
        ),
        (OSError(28, "No space left on device"), "clearn: error: No space left on device\n"),
    ],
)
def test_debug_shows_where_an_error_comes_from(
    error: Exception, line: str, clearn: Clearn, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> int:
        raise error

    monkeypatch.setitem(commands.COMMANDS, "doctor", fail)
    assert clearn("doctor") == (2, "", line)
    for arguments in (("--debug", "doctor"), ("doctor", "--debug")):
        code, _, shown = clearn(*arguments)
        assert code == 2
        assert shown.startswith("Traceback")
        assert ", in fail" in shown
        assert shown.endswith(line)


def test_warnings_of_ours_are_one_line_and_those_of_libraries_say_where(
    clearn: Clearn, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = Path(commands.__file__).parents[1] / "run" / "loop.py"

    def warn() -> int:
        warnings.simplefilter("always")
        warnings.warn_explicit("look here", UserWarning, str(ours), 7)
        warnings.warn_explicit("old", FutureWarning, "/elsewhere/library.py", 3)
        return 0

    monkeypatch.setitem(commands.COMMANDS, "doctor", warn)
    code, _, shown = clearn("doctor")
    assert code == 0
    assert shown == "clearn: warning: look here\n/elsewhere/library.py: FutureWarning: old\n"


def test_keyboard_interrupt_outside_a_run(clearn: Clearn, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> int:
        raise KeyboardInterrupt

    monkeypatch.setitem(commands.COMMANDS, "doctor", interrupt)
    assert clearn("doctor") == (130, "", "clearn: stopped\n")


def test_a_fault_of_ours_is_not_hidden(clearn: Clearn, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> int:
        raise RuntimeError("a bug")

    monkeypatch.setitem(commands.COMMANDS, "doctor", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        clearn("doctor")


def test_module_and_exit_code_in_a_process_of_its_own(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "clearn", "rum"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("clearn: error: command: 'rum' is unknown")
    assert done.stderr.count("\n") == 1
