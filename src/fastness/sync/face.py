"""How a method of the async face becomes one of this: wrapped, never written again.

Each wrapper takes its signature, its documentation and its types from the async method, so that a reader, a type
checker and ``help`` find here what stands there. It promises that all of a call's code runs on the loop's thread, where
everything else of the library runs as well; attributes alone are read where they are asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from types import TracebackType
from typing import Any, ClassVar, Concatenate, Generic, Never, ParamSpec, Self, TypeVar, cast, overload

from fastness.errors import HandleUnusableError
from fastness.sync.loop import LoopThread, Make

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])


class Face:
    """What stands over an object of the async face and calls it on its loop."""

    _of: ClassVar[type]

    def __init__(self, loop: LoopThread, over: Any) -> None:
        self._loop = loop
        self._over = over

    def _run(self, make: Make[R]) -> R:
        return self._loop.run(make)


def blocking(method: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]]) -> Callable[Concatenate[Any, P], R]:
    """Make of a coroutine method one that waits for it."""

    def call(self: Face, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Wait."""
        return self._run(lambda: method(self._over, *args, **kwargs))

    return like(method, call)


def touching(method: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], R]:
    """Make of a plain method one that runs where everything else does."""

    def call(self: Face, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run it there."""

        async def there() -> R:
            """Run it here."""
            return method(self._over, *args, **kwargs)

        return self._run(there)

    return like(method, call)


def iterating(method: Callable[Concatenate[Any, P], AsyncIterator[R]]) -> Callable[Concatenate[Any, P], Stream[R]]:
    """Make of an async generator method one that gives an iterator."""

    def call(self: Face, /, *args: P.args, **kwargs: P.kwargs) -> Stream[R]:
        """Iterate."""
        return Stream(self, cast("AsyncGenerator[R, None]", method(self._over, *args, **kwargs)))

    return like(method, call)


def like(method: Callable[..., Any], call: F) -> F:
    """Have a wrapper look like what it wraps, but for what makes that asynchronous."""
    functools.update_wrapper(call, method)
    del call.__dict__["__wrapped__"]  # nobody should see a coroutine function there
    signature = inspect.signature(method)
    given = str(signature.return_annotation).replace("AsyncIterator", "Iterator")
    call.__dict__["__signature__"] = signature.replace(return_annotation=given)
    call.__doc__ = (method.__doc__ or "").replace("async with", "with")
    return call


class Stream(Generic[R]):
    """An iterator over what an async one gives.

    It may be left at any time: dropping it, ``close`` and the end of its ``with`` block all end the async one as well.
    ``close`` may be called by any thread, and ends a loop that waits for the next item.
    """

    def __init__(self, face: Face, source: AsyncGenerator[R, None]) -> None:
        self._face = face
        self._source = source
        self._waiting: asyncio.Task[Any] | None = None
        self._is_closed = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> R:
        items = self._face._run(self._next)
        if not items:
            raise StopIteration
        return items[0]

    def close(self) -> None:
        """End it. Twice is fine, and so is a database that was closed before."""
        with contextlib.suppress(HandleUnusableError):
            self._face._loop.run(self._close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def _next(self) -> tuple[R, ...]:
        """Give the next item, or none behind the last."""
        self._waiting = asyncio.current_task()
        try:
            return () if self._is_closed else (await anext(self._source),)
        except StopAsyncIteration:
            return ()
        except asyncio.CancelledError:
            if self._is_closed:
                return ()
            raise
        finally:
            self._waiting = None

    async def _close(self) -> None:
        self._is_closed = True
        if self._waiting is not None:
            self._waiting.cancel()
            await asyncio.wait({self._waiting})
        await self._source.aclose()


class Seen(Generic[R]):
    """An attribute of the async object, read where it is asked for.

    That is safe beside the loop's thread: what is read are whole, immutable values, and lists that only grow.
    """

    def __init__(self, read: Callable[[Any], R]) -> None:
        self._read = read
        self._name = ""

    def __set_name__(self, owner: type[Face], name: str) -> None:
        self._name = name
        self.__doc__ = getattr(owner._of, name, self).__doc__

    @overload
    def __get__(self, face: None, owner: type[Face]) -> Self: ...
    @overload
    def __get__(self, face: Face, owner: type[Face]) -> R: ...
    def __get__(self, face: Face | None, owner: type[Face]) -> Self | R:
        return self if face is None else self._read(face._over)

    def __set__(self, face: Face, value: Never) -> None:
        raise AttributeError(f"{self._name} can only be read")


class SeenAndSet(Seen[R]):
    """An attribute that can be set, too; that happens on the loop's thread."""

    def __set__(self, face: Face, value: R) -> None:
        async def there() -> None:
            """Set it here."""
            setattr(face._over, self._name, value)

        face._run(there)
