"""The real Avalanche, importable without torchvision and the other packages that its training loop never calls.

Avalanche imports everything it might use: torchvision, and pytorchcv that brings it, for data sets and models that
are not used here; wandb, GPUtil, psutil and gdown for logging and downloads; qpsolvers for another strategy.
torchvision must match the build of PyTorch, and its wheel for another build would not import. Whichever of them is
not installed is stood in for while Avalanche is imported, and gone after that. Strategy, plugin class, training loop,
data sets, classifiers and checkpoints are Avalanche's own.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
import warnings

import pytest

UNUSED = {"GPUtil", "gdown", "psutil", "pytorchcv", "qpsolvers", "torchvision", "wandb"}


class _Unusable:
    """A class or function of a package that is not there: may be subclassed and built, but does nothing."""

    def __init__(self, *_args, **_kwargs):
        pass

    def __call__(self, *_args, **_kwargs):
        raise ModuleNotFoundError(f"{type(self).__name__} is only stood in for")


class _StandIn(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (_Unusable,), {})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds, after every other finder has failed, a stand-in for each of `UNUSED` and for all modules in it."""

    def find_spec(self, name, _path=None, _target=None):
        if name.partition(".")[0] in UNUSED:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return _StandIn(spec.name)

    def exec_module(self, module):
        pass


def import_avalanche():
    """Import the parts that the tests use; skips the module of tests where Avalanche is not installed."""
    if importlib.util.find_spec("avalanche") is None:
        pytest.skip("needs avalanche-lib: `pip install --no-deps avalanche-lib dill`", allow_module_level=True)
    finder = _Finder()
    sys.meta_path.append(finder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import avalanche.checkpointing  # noqa: F401
            import avalanche.evaluation.metrics  # noqa: F401
            import avalanche.training.plugins  # noqa: F401
            import avalanche.training.supervised  # noqa: F401
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name, module in sys.modules.items() if isinstance(module, _StandIn)]:
            del sys.modules[name]
