"""One of two processes, started by torchrun: computes losses of the tests, then makes a training run.

python -m torch.distributed.run --standalone --nproc-per-node 2 -m tests.training.two_processes FOLDER SETTINGS ...
"""

import sys
from pathlib import Path

import torch

from e2rank_st.training.run import main
from tests.training.test_losses import share_losses

if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    share_losses(Path(sys.argv[1]))
    main(sys.argv[2:])
    torch.distributed.destroy_process_group()
