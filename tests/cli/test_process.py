"""Threads and memory of a command's process."""

import os
import subprocess
import sys

import pytest

# How many pages the system fills with zeros while the same large block comes and goes.
PROGRAM = """
import resource, sys
if sys.argv[1] == "settled":
    from e2rank_st.cli.process import settle
    settle()
size = 48 * 2**20
for _ in range(3):
    bytearray(size)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    bytearray(b"x") * size
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str, **environment: str) -> int:
    variables = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", PROGRAM, how]
    return int(subprocess.run(command, env=variables | environment, capture_output=True, check=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="pages are counted as Linux does")
def test_freed_memory_is_kept():
    """Guards against a forward pass whose memory the system makes anew each time."""
    usual, settled = faults("usual"), faults("settled")
    if usual < 1000:
        pytest.skip("this C library keeps freed memory by itself")
    assert settled < usual / 5
    for own in ({"MALLOC_MMAP_THRESHOLD_": "1048576"}, {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=1048576"}):
        assert faults("settled", **own) > usual / 2, "the user's own variable decides"


def test_threads_sleep_while_they_wait(monkeypatch):
    """Guards against threads that spin on a busy machine, and against a user's variable that is overwritten."""
    from e2rank_st.cli.process import settle

    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    settle()
    assert os.environ["OMP_WAIT_POLICY"] == "passive"
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    settle()
    assert os.environ["OMP_WAIT_POLICY"] == "active"
