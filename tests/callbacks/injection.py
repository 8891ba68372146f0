"""Functions of the package, found by walking its modules, and a fault put into one of them for a single call."""

import importlib
import inspect
import pkgutil
import sys
import warnings
from contextlib import contextmanager
from functools import cached_property


class Fault(RuntimeError):
    """What is injected."""


def functions(*packages):
    """{qualified name: function} of all functions and methods that the modules of these packages define."""
    found = {}
    for name in packages:
        module = importlib.import_module(name)
        names = [name]
        if hasattr(module, "__path__"):
            names += [info.name for info in pkgutil.walk_packages(module.__path__, f"{name}.")]
        for module_name in names:
            module = importlib.import_module(module_name)
            for owner in [module, *(c for _, c in inspect.getmembers(module, inspect.isclass))]:
                if owner is not module and owner.__module__ != module_name:
                    continue
                for value in vars(owner).values():
                    function = _function(value)
                    if function is not None and function.__code__.co_filename == module.__file__:
                        found[f"{module_name}.{function.__qualname__}"] = function
    return found


def _function(value):
    """The innermost function of a method, a property, a decorated one."""
    if isinstance(value, (classmethod, staticmethod)):
        value = value.__func__
    elif isinstance(value, property):
        value = value.fget
    elif isinstance(value, cached_property):
        value = value.func
    value = inspect.unwrap(value) if callable(value) else value
    return value if inspect.isfunction(value) else None


@contextmanager
def counted():
    """The code of all functions that are called within."""
    seen = set()
    sys.setprofile(lambda frame, event, arg: seen.add(frame.f_code) if event == "call" else None)
    try:
        yield seen
    finally:
        sys.setprofile(None)


def _fail(*args, **options):
    import sys

    sys.modules["injected"].Injected.strike()


class Injected:
    """The function that fails now: its code is another until its first call."""

    function = code = None

    @classmethod
    def strike(cls):
        function = cls.function
        cls.restore()
        raise Fault(f"injected into {function.__qualname__}")

    @classmethod
    def restore(cls):
        if cls.function is not None:
            _replace_code(cls.function, cls.code)
            cls.function = None


def _replace_code(function, code):
    with warnings.catch_warnings():  # Python 3.13 advises against code that is no generator in place of a generator's
        warnings.simplefilter("ignore", DeprecationWarning)
        function.__code__ = code


sys.modules["injected"] = sys.modules[__name__]  # where the code finds it, whatever the globals it runs with


@contextmanager
def fault_in(function):
    """A fault at the function's first call within, whoever calls it by whatever name."""
    Injected.function, Injected.code = function, function.__code__
    _replace_code(function, _fail.__code__.replace(co_freevars=function.__code__.co_freevars))
    try:
        yield
    finally:
        Injected.restore()
