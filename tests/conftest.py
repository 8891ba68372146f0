"""One intra-op thread: matrices are small, and test runs may share a machine. What is read, and decomposed."""

import pytest
import safetensors
import torch

torch.set_num_threads(1)


@pytest.fixture
def values_read(monkeypatch):
    """Names of the tensors that are read from safetensors files; a single number may be."""
    names = []

    class Counting:
        def __init__(self, *args, **options):
            self.file = original(*args, **options)
            self.keys, self.get_slice, self.metadata = self.file.keys, self.file.get_slice, self.file.metadata

        def get_tensor(self, name):
            tensor = self.file.get_tensor(name)
            names.extend([name] if tensor.ndim else [])
            return tensor

    original = safetensors.safe_open
    monkeypatch.setattr(safetensors, "safe_open", Counting)
    return names


@pytest.fixture
def decomposed(monkeypatch):
    """How many matrices PyTorch's LAPACK decomposed, call by call."""
    real, numbers = torch.linalg.eigvalsh, []

    def eigvalsh(matrices, **options):
        numbers.append(matrices[..., 0, 0].numel())
        return real(matrices, **options)

    monkeypatch.setattr(torch.linalg, "eigvalsh", eigvalsh)
    return numbers
