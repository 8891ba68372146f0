"""The adaptive Fourier neural operator (AFNO): a two-layer complex network shared by all frequencies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from lightning_farms.common.arguments import check_integers
from lightning_farms.models.dpot._fourier_modes import analyse, synthesise
from lightning_farms.models.dpot.config import Activation

_ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "silu": nn.SiLU, "relu": nn.ReLU, "tanh": nn.Tanh}


def build_activation(name: Activation) -> nn.Module:
    """Build a fresh activation module from its name; "gelu" is the exact one, with the error function."""
    if name not in _ACTIVATIONS:
        raise ValueError(f"Expected argument `act` to be one of {sorted(_ACTIVATIONS)}, but got {name!r}.")
    return _ACTIVATIONS[name]()


class AFNO2d(nn.Module):
    r"""Mix a field's pixels in Fourier space with one small complex network for all frequencies.

    With :math:`z = \mathrm{rfft2}(x)` (orthonormal) split into `n_blocks` groups of channels, on the first
    `modes` rows and columns of frequencies

    .. math:: \hat z = W_2\,\sigma(W_1 z + b_1) + b_2, \qquad y = x + \mathrm{irfft2}(\hat z),

    where :math:`W_1, W_2, b_1, b_2` are complex, one set for each group, the activation :math:`\sigma` acts on
    real and imaginary part separately, and all other frequencies of :math:`\hat z` are zero. The complex
    weights are stored as real pairs: index 0 of the leading dimension is the real part, index 1 the imaginary.
    The transform and the products run in float32 (float64 for float64 input), under autocast too. If
    `torch.set_float32_matmul_precision` allows a GPU to round float32 products to TF32, these are rounded as well.

    Reference:
        Guibas et al., Adaptive Fourier Neural Operators, ICLR 2022, section 4; Hao et al., DPOT, ICML 2024,
        section 3.2 (without soft-thresholding).
    """

    def __init__(self, channels: int, *, n_blocks: int = 4, modes: int = 32, act: Activation = "gelu") -> None:
        super().__init__()
        check_integers(1, channels=channels, n_blocks=n_blocks, modes=modes)
        if channels % n_blocks:
            raise ValueError(
                f"Expected argument `channels` to be a multiple of `n_blocks`, but got {channels} and {n_blocks}."
            )
        self.channels, self.n_blocks, self.modes = channels, n_blocks, modes
        width = channels // n_blocks
        self.w1 = nn.Parameter(torch.empty(2, n_blocks, width, width))
        self.b1 = nn.Parameter(torch.empty(2, n_blocks, width))
        self.w2 = nn.Parameter(torch.empty(2, n_blocks, width, width))
        self.b2 = nn.Parameter(torch.empty(2, n_blocks, width))
        self.act = build_activation(act)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw every weight and bias uniformly from [0, 1 / width²), width being the number of channels in a group."""
        scale = (self.n_blocks / self.channels) ** 2
        for parameter in self.parameters(recurse=False):
            nn.init.uniform_(parameter, 0.0, scale)

    def spectral_weights(self) -> Iterator[tuple[str, Tensor, tuple[Tensor, ...]]]:
        """Yield both layers' complex matrices (n_blocks, in, out), with the parameters that belong to them."""
        for name, pair, bias in (("w1", self.w1, self.b1), ("w2", self.w2, self.b2)):
            real, imaginary = pair.to(torch.promote_types(pair.dtype, torch.float32))
            yield name, torch.complex(real, imaginary), (pair, bias)

    def extra_repr(self) -> str:
        """Return the settings that `print(module)` shows."""
        return f"channels={self.channels}, n_blocks={self.n_blocks}, modes={self.modes}"

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels, height, width) to the same shape and dtype, channels last in memory."""
        with autocast_off(x.device.type):
            field = x.movedim(1, -1).to(torch.promote_types(x.dtype, torch.float32))
            mixed = synthesise(self._mix(analyse(field, self.modes)), *field.shape[1:3])
            mixed_in: Tensor = field + mixed
            return mixed_in.to(x.dtype).movedim(-1, 1)

    def _mix(self, spectrum: Tensor) -> Tensor:
        """Apply the two complex layers to coefficients (batch, 2, rows, columns, channels)."""
        batch, _, rows, columns, channels = spectrum.shape
        width = channels // self.n_blocks
        parts = spectrum.view(batch, 2, rows, columns, self.n_blocks, width)
        tokens = parts.permute(4, 0, 2, 3, 1, 5).reshape(self.n_blocks, batch * rows * columns, 2 * width)
        hidden = self.act(_complex_linear(tokens, self.w1, self.b1))
        tokens = _complex_linear(hidden, self.w2, self.b2)
        parts = tokens.view(self.n_blocks, batch, rows, columns, 2, width)
        return parts.permute(1, 4, 2, 3, 0, 5).reshape(spectrum.shape)


def _complex_linear(tokens: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Multiply rows [real, imaginary], shape (blocks, tokens, 2 * width), by a complex weight in one real product.

    [Re z, Im z] @ [[Re W, Im W], [-Im W, Re W]] = [Re zW, Im zW] is faster than a complex product, which has no
    tuned kernel on many devices, and lets the activation act on both parts at once.
    """
    real, imaginary = weight.to(tokens.dtype)
    stacked = torch.cat((torch.cat((real, imaginary), dim=-1), torch.cat((-imaginary, real), dim=-1)), dim=-2)
    offset = torch.cat((bias[0], bias[1]), dim=-1).to(tokens.dtype).unsqueeze(1)
    return torch.baddbmm(offset, tokens, stacked)


def autocast_off(device_type: str) -> AbstractContextManager[object]:
    """Return a context in which autocast is off, also for devices that do not know autocast."""
    if torch.amp.autocast_mode.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()
