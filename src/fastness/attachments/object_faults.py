"""An object service that is ill: how long it is asked, and what its failures mean. Pure; the library is obstore.

It promises that nothing secret gets through. The library's messages carry addresses (a signed one is a secret), headers
and bodies of answers; of all that, only the HTTP status and the kind of failure are taken over.
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any, Literal, NamedTuple, TypeAlias

from fastness.errors import AttachmentStoreError

RETRIES = 6
"""How often a request is repeated that the service answered with a 5xx, or not at all."""

Meaning: TypeAlias = Literal["absent", "present", "beyond", "unsupported", "failed"]
"""What a failure says about the object: there is none of that name; there is one already; it ends before the part that
was asked for; the service does not do this; or nothing at all."""


class Fault(NamedTuple):
    """A failure as a value. ``means`` is for the store, the rest is for whoever reads the error."""

    means: Meaning
    reason: str
    detail: str
    remedy: str

    def error(self) -> AttachmentStoreError:
        """Give the error to raise, which knows nothing of where it came from."""
        return AttachmentStoreError(self.reason, self.detail, self.remedy)


MISSING = Fault(
    "absent",
    "missing",
    "the bucket or directory of the attachments does not exist",
    "create it, or name the right one, and retry the same call",
)
"""No object of that name. Where objects are made, or when it holds for all of them: the place itself is not there."""

_STATUS = re.compile(r"status code: (\d{3})")
"""The first match is the library's own: it names the status before it repeats the body of the answer."""

_SYSTEM = re.compile(r"\(os error (\d+)\)|\bOs \{\s*code: (\d+)")
_BEYOND = re.compile(r"StartTooLarge|InvalidRange")
_NETWORK = re.compile(r"HTTP error|HttpError|reqwest")
_REDIRECT = re.compile(r"BareRedirect")

_DENIED = frozenset({"1", "13", "30"})
"""EPERM, EACCES and EROFS, of directories."""

_FULL = frozenset({"28", "122"})
"""ENOSPC and EDQUOT."""

_UNSUPPORTED = frozenset({"400", "501"})
"""What services answer to a header that they do not know."""

_REACH = "see whether the service can be reached from here, and retry the same call"
_RIGHTS = "give these credentials the right to read, write, delete and list below the prefix, and retry the same call"
_LOOK = "look into the service's own log or status page, and retry the same call"


def bounded(config: dict[str, Any], patience_ms: int) -> dict[str, Any]:
    """Add the bounds that follow from our patience to the configuration of a service's store.

    The time-out for a whole answer is as good as off: a large one may take hours, as long as it goes on.
    """
    patience = timedelta(milliseconds=patience_ms)
    client = {
        "connect_timeout": min(timedelta(seconds=5), patience / 2),
        "read_timeout": patience,
        "timeout": timedelta(days=1),
    }
    retry = {
        "max_retries": RETRIES,
        "retry_timeout": patience,
        "backoff": {
            "init_backoff": min(timedelta(milliseconds=100), patience / 40),
            "max_backoff": patience / 10,
            "base": 2,
        },
    }
    return {
        **config,
        "client_options": {**client, **config.get("client_options", {})},
        "retry_config": {**retry, **config.get("retry_config", {})},
    }


def fault_of(error: Exception, patience_ms: int) -> Fault:
    """Read what the library raised, or the time-out of a request that got ``patience_ms``."""
    from obstore import exceptions as kinds  # noqa: PLC0415 - an optional library; it has raised, so it is there

    if isinstance(error, FileNotFoundError):
        return MISSING
    if isinstance(error, TimeoutError):
        return Fault("failed", "unreachable", f"the object service gave no answer within {patience_ms} ms", _REACH)
    said = str(error)
    found = _STATUS.search(said)
    status = found[1] if found else None
    after = f" (HTTP status {status})" if status else ""
    if isinstance(error, kinds.AlreadyExistsError | kinds.PreconditionError):
        return Fault("present", "refused", f"the object service reports a conflict{after}", _LOOK)
    if isinstance(error, kinds.PermissionDeniedError | kinds.UnauthenticatedError):
        return Fault("failed", "permission", f"the object service refuses access{after}", _RIGHTS)
    if isinstance(error, kinds.NotSupportedError | NotImplementedError):
        return Fault("unsupported", "refused", "the object service does not support this request", _LOOK)
    return _of_status(status) if status else _of_text(said, type(error).__name__)


def _of_status(status: str) -> Fault:
    if status == "404":
        return MISSING
    if status in {"401", "403"}:
        return Fault("failed", "permission", f"the object service refuses access (HTTP status {status})", _RIGHTS)
    if status == "416":
        return Fault("beyond", "refused", "the object is shorter than the part asked for (HTTP status 416)", _LOOK)
    means: Meaning = "unsupported" if status in _UNSUPPORTED else "failed"
    return Fault(means, "refused", f"the object service answered with HTTP status {status}", _LOOK)


def _of_text(said: str, kind: str) -> Fault:
    """Without a status there was no whole answer: the network, the file system, or the library itself."""
    if _BEYOND.search(said):
        return Fault("beyond", "io", "the object is shorter than the part asked for", "look at the object, and retry")
    if _REDIRECT.search(said):
        return Fault("failed", "refused", "the object service sends us elsewhere", "name the region of the bucket")
    if _NETWORK.search(said):
        return Fault("failed", "unreachable", "the connection to the object service failed", _REACH)
    system = _SYSTEM.search(said)
    return _of_system(system[1] or system[2] if system else "", kind)


def _of_system(code: str, kind: str) -> Fault:
    """What the operating system says about a directory by its number; no number is the library's own failure."""
    if code == "2":  # ENOENT
        return MISSING
    if code in _DENIED:
        return Fault("failed", "permission", "the directory of the attachments refuses access", _RIGHTS)
    if code in _FULL:
        return Fault("failed", "full", "there is no space left for attachments", "make room, and retry the same call")
    detail = f"the object store failed ({kind}{f', system error {code}' if code else ''})"
    return Fault("failed", "io", detail, "see whether the place of the attachments works, and retry the same call")
