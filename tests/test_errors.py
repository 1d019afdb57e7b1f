"""Commands print our own warnings as one line each, and none of a library."""

import logging
import warnings

import src.errors
from src.errors import exit_status


def test_warnings_of_a_command_are_one_line_each(capsys, monkeypatch):
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # restored after the test

    def run() -> int:
        warnings.warn_explicit("a.wav is silent", UserWarning, src.errors.__file__, 1)
        warnings.warn_explicit("of a library", UserWarning, logging.__file__, 1)
        return 0

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(logging.getLogger("src"), "handlers", [])
        monkeypatch.setattr(logging.getLogger("src"), "propagate", False)
        assert exit_status(run) == 0
    assert capsys.readouterr().err == "warning: a.wav is silent\n"
