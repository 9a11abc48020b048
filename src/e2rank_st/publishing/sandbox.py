"""A command → its end, in processes that are killed together: by a time limit, a memory limit, and at the end.

Where Linux allows it, they have no network and cannot leave their group: they get namespaces of their own. A user
namespace is always one of them, also for root, who could otherwise go back to the network of the machine.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from e2rank_st.storage import read_json

__all__ = ["MEMORY", "probe", "run", "why_no_namespace"]

UNSHARE = ("unshare", "--user", "--map-root-user", "--net", "--pid", "--fork", "--kill-child")
POLL = 0.05  # seconds between two looks at the processes
MOST_PROCESSES = 256
TAIL = 2**16  # bytes of standard error that are read
GIB = 2**30
MEMORY = 8 * GIB  # of a process with torch, a small model and a few texts
SECRETS = "HF_|HUGGING|TOKEN|SECRET|PASSW|API_KEY"  # in names of variables that no process gets
OUT_OF_MEMORY = ("MemoryError", "DefaultCPUAllocator", "std::bad_alloc", "Cannot allocate memory")


@cache
def why_no_namespace() -> str:
    """The reason why this system cannot run a command without network; empty if it can."""
    if not shutil.which(UNSHARE[0]):
        return "this system has no program unshare, a part of util-linux on Linux"
    done = subprocess.run([*UNSHARE, "true"], capture_output=True, text=True, errors="replace", check=False)
    words = " ".join(done.stderr.split()) or f"it ended with status {done.returncode}"
    return f"this system gives no network namespace ({words})" if done.returncode else ""


def probe(job: Mapping[str, Any], cache: Path, seconds: float) -> tuple[dict[str, Any], str]:
    """Do the tasks of a job in a fresh process, without the Hub's settings and without network.

    Args:
        job: As ``probe.py`` reads it.
        cache: The Hub's cache.
        seconds: Most seconds until its end.

    Returns:
        The results of the tasks that were done, and the problem; empty if all were.

    Raises:
        OSError: It cannot be started.
    """
    # Without any token or password of this user.
    environment = {name: value for name, value in os.environ.items() if not re.search(SECRETS, name, re.IGNORECASE)}
    environment |= {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-I", str(Path(__file__).with_name("probe.py"))]
    with TemporaryDirectory(dir=cache) as folder:
        Path(folder, "job.json").write_text(json.dumps(job), encoding="utf-8")
        problem = run(command, Path(folder), {**environment, "HF_HOME": folder}, seconds, job["memory"])
        results = Path(folder, "results.json")
        done: dict[str, Any] = read_json(results) if results.is_file() else {}
        return done, problem or ("" if job["tasks"][-1] in done else "it ended before the last task was done")


def run(command: Sequence[str], folder: Path, environment: Mapping[str, str], seconds: float, memory: int) -> str:
    """Run a command to its end, and leave none of its processes behind.

    Args:
        command: The command. It limits the memory of one process itself; here all of them are counted together.
        folder: Its working folder, which gets its standard error as ``stderr.txt``.
        environment: Its environment.
        seconds: Most seconds until its end.
        memory: Most bytes of memory of all its processes.

    Returns:
        The problem; empty if it ended with status 0.

    Raises:
        OSError: It cannot be started.
    """
    if os.name != "posix":
        raise OSError("Publishing needs Linux or macOS, whose processes it can limit and end.")
    prefix = () if why_no_namespace() else UNSHARE
    end, problem, errors = time.monotonic() + seconds, "", folder / "stderr.txt"
    with errors.open("wb") as stderr:
        process = subprocess.Popen(
            [*prefix, *command], env=dict(environment), cwd=folder, stderr=stderr, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
    waiter = threading.Thread(target=process.wait, daemon=True)
    try:
        waiter.start()
        waiter.join(POLL)
        while waiter.is_alive() and not problem:
            problem = _excess(process.pid, memory)
            if not problem and time.monotonic() > end:
                problem = f"it did not end within {seconds:.0f} s, and was stopped"
            waiter.join(POLL)
    finally:
        _end(process.pid, waiter)
    if problem or not process.returncode:
        return problem
    with errors.open("rb") as file:
        file.seek(max(0, errors.stat().st_size - TAIL))
        words = _last_words(file.read().decode(errors="replace"))
    if any(name in words for name in OUT_OF_MEMORY):
        words = f"it needs more memory than the {memory / GIB:.1f} GiB that it may have: {words}"
    return words or f"it ended with status {process.returncode}"


def _end(root: int, waiter: threading.Thread) -> None:
    """Kill all processes of a command, and wait for their end."""
    if not why_no_namespace():  # the only child is the first process of the namespace, which ends after all the others
        for process in [process for process, parent in _processes()[0].items() if parent == root]:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        waiter.join()
    with suppress(ProcessLookupError):  # all of them have ended
        os.killpg(root, signal.SIGKILL)
    waiter.join()


def _processes() -> tuple[dict[int, int], dict[int, int]]:
    """The parent of each process, and its bytes of memory; empty where there is no ``/proc``."""
    parents, resident, page = {}, {}, os.sysconf("SC_PAGE_SIZE")
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has just ended
            fields = path.read_bytes().rpartition(b")")[2].split()  # a name may hold spaces and brackets
            parents[int(path.parent.name)], resident[int(path.parent.name)] = int(fields[1]), int(fields[21]) * page
    return parents, resident


def _excess(root: int, memory: int) -> str:
    """What the processes below ``root`` have too much of; without a ``/proc`` nobody can tell."""
    parents, resident = _processes()
    tree: set[int] = set()
    below = {root}
    while below:
        tree |= below
        below = {process for process, parent in parents.items() if parent in below} - tree
    if len(tree) > MOST_PROCESSES:
        return f"it started {len(tree)} processes, and was stopped; allowed are {MOST_PROCESSES}"
    if sum(resident.get(process, 0) for process in tree) > memory:
        return f"it took more memory than the {memory / GIB:.1f} GiB that it may have, and was stopped"
    return ""


def _last_words(stderr: str) -> str:
    """The error at the end of a traceback, and the block of the card that raised it."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    block = next((line for line in reversed(lines) if "<Python block" in line), "")
    where = f" ({block})" if block else ""
    return f"{' '.join(lines[-1:])}{where}"
