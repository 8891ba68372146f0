"""A device whose tensors say that they are on a GPU, while their values are on the CPU.

It refuses what a GPU refuses (tensors of two devices in one operation, NumPy's view, the CPU's random numbers), and
lists where the host would wait for it. It shows that code for GPUs runs, and what it computes; nothing about a GPU's
speed, memory, streams or rounding, and nothing about code that depends on CUDA's own libraries.
"""

import threading
import traceback
from contextlib import ExitStack, contextmanager
from typing import NamedTuple
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

DEVICE = torch.device("cuda", 0)
_aten = torch.ops.aten
_READING = {  # operations whose result, or its size, the host has to know
    _aten._local_scalar_dense.default,
    _aten.nonzero.default,
    _aten.equal.default,
    _aten.masked_select.default,
    _aten._unique2.default,
    _aten.unique_dim.default,
    _aten.unique_consecutive.default,
}
_COPYING = {_aten._to_copy.default, _aten.copy_.default}
_INDEXING = {_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._index_put_impl_.default}


class Wait(NamedTuple):
    """Where the host would wait for the device: the operation, and the line of the package that asked for it."""

    operation: str
    line: str


WAITS: list[Wait] = []
"""The waits since the list was last cleared."""


def _wait(operation):
    frames = [frame for frame in traceback.extract_stack() if "/lightning_farms/" in frame.filename]
    place = f"{frames[-1].filename.rpartition('/lightning_farms/')[2]}:{frames[-1].lineno}" if frames else ""
    WAITS.append(Wait(operation, place))


class EmulatedTensor(torch.Tensor):
    """A tensor of the device; ``inner`` holds its values. For PyTorch's own code in C++ it is on the meta device."""

    @staticmethod
    def __new__(cls, inner):
        """Wrap a tensor on the CPU."""
        options = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        found = torch.Tensor._make_wrapper_subclass(cls, inner.shape, **options, device="meta", layout=inner.layout)
        found.inner = inner
        return found

    device = property(lambda self: DEVICE)
    is_cuda = property(lambda self: True)
    is_meta = property(lambda self: False)

    def __repr__(self):
        return f"EmulatedTensor({self.inner!r})"

    def get_device(self):
        return 0

    def data_ptr(self):
        return self.inner.data_ptr()

    def untyped_storage(self):
        return self.inner.untyped_storage()

    def tolist(self):
        _wait("tolist")
        return self.inner.tolist()

    def numpy(self, *args, **options):
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")

    __array__ = numpy

    def __deepcopy__(self, memo):
        found = EmulatedTensor(self.inner.detach().clone()).requires_grad_(self.requires_grad)
        memo[id(self)] = torch.nn.Parameter(found, self.requires_grad) if hasattr(self, "_is_param") else found
        return memo[id(self)]

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _dispatched(function, args, kwargs or {})


def _dispatched(function, args, kwargs):
    """Do on the CPU what is asked of the device."""
    tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
    emulated = [each for each in tensors if isinstance(each, EmulatedTensor)]
    target = None if kwargs.get("device") is None else torch.device(kwargs["device"]).type
    makes_emulated = target == "meta" if target else bool(emulated)
    if function is _aten.copy_.default:
        makes_emulated = isinstance(args[0], EmulatedTensor)
    _check_devices(function, args, tensors, emulated)
    if emulated:
        _note_waits(function, args, kwargs, target)
    inner_args, inner_kwargs = tree_map_only(EmulatedTensor, lambda each: each.inner, (args, kwargs))
    if target == "meta":
        inner_kwargs = {**inner_kwargs, "device": torch.device("cpu")}
    if function is _aten.histc.default and not inner_args[0].is_floating_point():  # a GPU takes integers, too
        inner_args = (inner_args[0].float(), *inner_args[1:])
    guard = torch._C._DisableTorchDispatch()
    try:
        found = function(*inner_args, **inner_kwargs)
    finally:
        del guard
    written = function._schema.arguments and function._schema.arguments[0].alias_info
    if written and written.is_write and isinstance(found, torch.Tensor):
        return args[0]  # changed in place
    return tree_map_only(torch.Tensor, EmulatedTensor, found) if makes_emulated else found


def _check_devices(function, args, tensors, emulated):
    on_cpu = [each for each in tensors if not isinstance(each, EmulatedTensor)]
    for each in on_cpu:
        assert not torch.Tensor.is_meta.__get__(each), f"the emulation has lost the values of a tensor for {function}"
    if not emulated or function in _COPYING:
        return
    indexed_on_cpu = function in _INDEXING and not isinstance(args[0], EmulatedTensor)
    if indexed_on_cpu or (function not in _INDEXING and any(each.ndim for each in on_cpu)):
        raise RuntimeError(f"Expected all tensors to be on the same device, but found cuda:0 and cpu, in {function}")


def _note_waits(function, args, kwargs, target):
    blocking = not kwargs.get("non_blocking") and not (len(args) > 2 and args[2] is True)
    by_mask = function in _INDEXING and any(
        isinstance(each, torch.Tensor) and each.dtype in (torch.bool, torch.uint8) for each in args[1]
    )
    to_host = (function is _aten._to_copy.default and target == "cpu") or (
        function is _aten.copy_.default and not isinstance(args[0], EmulatedTensor)
    )
    if function in _READING or by_mask or (to_host and blocking):
        _wait(str(function))


class _Dispatch(TorchDispatchMode):
    """Makes the device's tensors where none is given."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return _dispatched(function, args, kwargs or {})


class _Names(TorchFunctionMode):
    """Says `meta` to PyTorch where the caller says `cuda`."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function in (torch.device, torch._C._nn._parse_to):  # asked for names, not for tensors
            return function(*args, **kwargs)
        if function is torch.Tensor.cuda:
            return args[0].to("meta")
        _check_generator(args, kwargs)
        if function in (torch.tensor, torch.as_tensor) and _is_device(kwargs.get("device")):
            made = function(*args, **{**kwargs, "device": "cpu"})
            return made if isinstance(made, EmulatedTensor) else EmulatedTensor(made)
        if function in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
            args = _with_tensors(*args)
        if _is_device(kwargs.get("device")):
            kwargs["device"] = "meta"
        kwargs.pop("pin_memory", None)
        return function(*("meta" if _is_device(each) else each for each in args), **kwargs)


def _check_generator(args, kwargs):
    generator = kwargs.get("generator")
    there = _is_device(kwargs.get("device")) or bool(args and isinstance(args[0], EmulatedTensor))
    if generator is not None and there != generator.emulated:
        raise RuntimeError(f"Expected a generator of the tensor's device, but found one of {generator.device}")


def _with_tensors(tensor, index, *value):
    """Make tensors of lists in an index, and of a number to be stored, which PyTorch would make on the meta device."""
    if isinstance(index, tuple):
        index = tuple(torch.tensor(each) if isinstance(each, list) else each for each in index)
    elif isinstance(index, list):
        index = torch.tensor(index)
    if value and isinstance(tensor, EmulatedTensor) and isinstance(value[0], (bool, int, float, complex)):
        value = (EmulatedTensor(torch.tensor(value[0], dtype=tensor.dtype)),)
    return tensor, index, *value


def _is_device(value):
    return isinstance(value, (str, torch.device)) and str(value).partition(":")[0] == "cuda"


class _Generator(torch._C.Generator):
    """A source of random numbers that knows which device it was made for."""

    def __new__(cls, device="cpu"):
        found = super().__new__(cls, "cpu")
        found.emulated = _is_device(device)
        return found

    device = property(lambda self: DEVICE if self.emulated else torch.device("cpu"))


class _Stream:
    device, cuda_stream = DEVICE, 0

    def __init__(self, *args, **options):
        pass

    def wait_stream(self, other):
        pass

    def synchronize(self):
        _wait("stream.synchronize")


class _Event:
    def __init__(self, *args, **options):
        pass

    def record(self, *args):
        pass

    def synchronize(self):
        _wait("event.synchronize")


@contextmanager
def _nothing(*args, **options):
    yield


_CUDA = {
    "current_stream": _Stream,
    "Stream": _Stream,
    "Event": _Event,
    "stream": _nothing,
    "device": _nothing,
    "synchronize": lambda *args: None,
    "empty_cache": lambda: None,
    "memory_allocated": lambda *args: 0,
    "max_memory_allocated": lambda *args: 0,
    "reset_peak_memory_stats": lambda *args: None,
    "get_device_capability": lambda *args: (0, 0),
    "get_device_name": lambda *args: "emulated",
    "set_sync_debug_mode": lambda mode: None,
}


@contextmanager
def emulated_device():
    """Emulate the device ``cuda`` in this thread, and in the threads that it starts; yields the list of waits."""
    _device_constructors()  # remembers PyTorch's functions before any is replaced
    start, run = threading.Thread.start, threading.Thread.run

    def starting(thread):
        thread.emulates = bool(_get_current_function_mode_stack())
        start(thread)

    def running(thread):
        with _Dispatch() if thread.emulates else _nothing(), _Names() if thread.emulates else _nothing():
            run(thread)

    with ExitStack() as stack:
        for name, stand_in in _CUDA.items():
            stack.enter_context(patch.object(torch.cuda, name, stand_in))
        stack.enter_context(patch.object(torch, "Generator", _Generator))
        stack.enter_context(patch.object(torch.Tensor, "pin_memory", lambda tensor, *args: tensor))
        stack.enter_context(patch.object(threading.Thread, "start", starting))
        stack.enter_context(patch.object(threading.Thread, "run", running))
        stack.enter_context(_Dispatch())
        stack.enter_context(_Names())
        WAITS.clear()
        yield WAITS
