"""One intra-op thread: the matrices here are small, and several test runs may share a machine."""

import torch

torch.set_num_threads(1)
