"""A process that makes an index again and again, and is killed at random moments: ``python killed.py MODEL FOLDER N``.

It loads the model once and forks, so a round takes milliseconds. The parent never touches LanceDB, whose threads do not
survive a fork. Each child embeds with the real model, and writes the ids of what it embedded to a log.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

import e2rank_st.search.index as module
from e2rank_st import E2Rank

PART_DOCUMENTS = 7


def documents(number: int) -> list[dict[str, object]]:
    return [{"id": f"d{row}", "text": f"fact {row} about fleas", "number": row} for row in range(number)]


def child(model: E2Rank, folder: Path, number: int, ready: int) -> None:

    encode = model.encode_document

    def logged(texts, **options):
        with (folder.parent / "log").open("a") as log:
            log.write("".join(text + "\n" for text in texts if text.startswith("fact")))
        return encode(texts, **options)

    model.encode_document = logged
    given = documents(number)
    os.write(ready, b"1")
    module.SearchIndex.create(folder, model, given[: number // 2]).add(iter(given))


def main(model_folder: str, target: str, rounds: int) -> None:
    module.PART_DOCUMENTS = PART_DOCUMENTS
    torch.set_num_threads(1)  # a pool of threads does not survive a fork
    model, folder, chance = E2Rank(model_folder, device="cpu"), Path(target), random.Random(0)
    model.encode_document(["warm"])
    kills = 0
    while True:
        started, ready = os.pipe()
        pid = os.fork()
        if not pid:
            status = 1
            try:
                child(model, folder, rounds * 15, ready)
                status = 0
            finally:
                os._exit(status)
        if kills == rounds:
            _, status = os.waitpid(pid, 0)
            sys.exit(status)
        os.close(ready)
        os.read(started, 1)
        os.close(started)
        time.sleep(chance.uniform(0.0, 0.3))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        kills += 1


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
