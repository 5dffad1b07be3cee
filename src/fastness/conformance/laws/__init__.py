"""The laws as test functions. ``from fastness.conformance.laws import *`` brings all of them into a test module.

What is exported is derived: every coroutine of these modules whose name begins with ``test_``. Each is marked for
pytest-asyncio here, so that it runs in its strict mode as well as in its auto mode.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import pytest

__all__: list[str] = []

for _module in pkgutil.iter_modules(__path__):
    for _name, _law in vars(importlib.import_module(f"{__name__}.{_module.name}")).items():
        if _name.startswith("test_") and inspect.iscoroutinefunction(_law):
            assert _name not in globals(), f"two laws are called {_name}"
            globals()[_name] = pytest.mark.asyncio(loop_scope="function")(_law)
            __all__ += [_name]  # noqa: PLE0604 - names of this loop
