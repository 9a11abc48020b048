"""Memory of a ranking: that of one batch, however many candidates there are."""

import subprocess
import sys
from pathlib import Path

import pytest

# Bytes that a call needs beside what was there before: of 32 long candidates, and of 10,000 among which they are.
PROGRAM = """
import sys, torch
from e2rank_st import E2Rank
from e2rank_st.benchmarks.meter import memory_in_use
model = E2Rank(sys.argv[1], device="cpu")
long = [f"{number} " + "an adult flea lives from two to three months. " * 10 for number in range(32)]
short = [f"flea {number}" for number in range(10_000 - len(long))]
model.rerank("how long do fleas live", long[:2], num_prompt_documents=2)
for documents in (long, [*long, *short]):
    before = memory_in_use(model.device)
    model.rerank("how long do fleas live", documents, num_prompt_documents=2)
    print(memory_in_use(model.device, peak=True) - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak of a call")
def test_memory_does_not_follow_the_number_of_candidates(with_yes_and_no, tmp_path):
    """Guards against hidden states that are kept: 10,000 candidates need 1.3 times the memory of a batch at most."""
    from e2rank_st.benchmarks.peers import write_random_decoder

    folder = write_random_decoder("qwen3-small", with_yes_and_no, tmp_path / "model")
    command = [sys.executable, "-c", PROGRAM, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-1000:]
    batch, many = map(int, done.stdout.split())
    assert batch > 20_000_000, "the premise: a batch takes more than the lists of candidates"
    assert many <= 1.3 * batch
