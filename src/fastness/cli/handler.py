"""Finding the handler that a worker is to run: ``module:function``, as the command line names it.

It promises that whatever is wrong with the name, or with the module, is one ``InvalidInputError`` that says what to do.
The module is somebody else's code: what it raises is shown with where, and nothing of it gets further.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from pathlib import Path
from typing import cast

from fastness.errors import InvalidInputError
from fastness.runtime.worker import Handler

_FORM = "name it as module:function, such as app:handler"


def find_handler(name: str) -> Handler:
    """Import the module, also from the working directory, and give what is named in it.

    Raises ``InvalidInputError``.
    """
    module_name, colon, path = name.partition(":")
    if not colon or not path or not all(part.isidentifier() for part in module_name.split(".")):
        raise InvalidInputError(f"handler {name!r}", f"names no function of a module; {_FORM}")
    if module_name.endswith(".py"):
        raise InvalidInputError(f"handler {name!r}", f"names a file and not a module; {_FORM}")
    found: object = _import(module_name)
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise InvalidInputError(f"handler {name!r}", _nothing_there(module_name, path)) from None
    _require_handler(name, found)
    return cast("Handler", found)


def _import(module_name: str) -> object:
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise _broken(module_name, error) from error
        raise InvalidInputError(
            f"module {error.name!r}", f"is neither in {here} nor installed; run this where it is, or install it"
        ) from None
    except (Exception, SystemExit) as error:
        raise _broken(module_name, error) from error


def _broken(module_name: str, error: BaseException) -> InvalidInputError:
    """Say what importing a module came to, and on which line of what file."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<")]
    here = [frame for frame in frames if Path(frame.filename).is_relative_to(Path.cwd())]
    last = (here or frames)[-1]
    told = "".join(traceback.format_exception_only(error)[-1:]).strip()
    where = f" ({last.filename}, line {last.lineno})"
    if isinstance(error, SyntaxError):
        where = f" ({error.filename}, line {error.lineno})"
    return InvalidInputError(f"module {module_name!r}", f"cannot be imported: {told}{where}; mend it and try again")


def _nothing_there(module_name: str, path: str) -> str:
    module = sys.modules[module_name]
    own = [
        name
        for name, value in vars(module).items()
        if inspect.iscoroutinefunction(value) and value.__module__ == module_name
    ]
    there = f"its async functions are: {', '.join(sorted(own))}" if own else "it has no async function at all"
    return f"is not there: module {module_name!r} has no {path!r}; {there}"


def _require_handler(name: str, found: object) -> None:
    what = f"handler {name!r}"
    if not callable(found):
        raise InvalidInputError(what, f"is of the type {type(found).__name__}, and must be: async def handler(turn): …")
    call = inspect.unwrap(found)
    if not inspect.iscoroutinefunction(call) and not inspect.iscoroutinefunction(type(call).__call__):
        raise InvalidInputError(what, "is not async, and must be: async def handler(turn): …")
    try:
        inspect.signature(found).bind(None)
    except TypeError:
        raise InvalidInputError(what, "must take one argument, the turn: async def handler(turn): …") from None
    except ValueError:
        return  # it does not say what it takes
