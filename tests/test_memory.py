"""Freed memory is kept, in a process of its own: the setting holds until it ends."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource
import numpy as np
from src.memory import keep_freed_memory
keep_freed_memory()
for turn in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    waveforms = [np.ones(32000, np.float32) for _ in range(256)]
    del waveforms
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_memory_of_freed_waveforms_is_used_again():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert int(done.stdout) <= 100  # page faults; 8,000 if all 32 MB were given back


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr("src.memory.platform.libc_ver", lambda: ("", ""))
    monkeypatch.setattr("src.memory.ctypes.CDLL", None)
    from src.memory import keep_freed_memory

    keep_freed_memory()
