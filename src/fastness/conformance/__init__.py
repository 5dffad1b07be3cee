"""The laws as a kit: whoever writes an engine, or wraps a store, supplies one fixture and gets all of them.

``subject`` says what is put to the laws, ``laws`` holds them as test functions, ``plugin`` is what pytest loads: the
``lab`` and ``attachments`` fixtures and the report with one row per law. ``docs/conformance.md`` shows a whole run.
"""

import pytest

# Before any of them is imported: a law that fails shows the values that it compared.
pytest.register_assert_rewrite(*(f"{__name__}.{name}" for name in ("builders", "lab", "laws", "rows")))

from fastness.conformance.lab import AttachmentLab, Lab  # noqa: E402 - after the line above
from fastness.conformance.subject import ALL_POWERS, AttachmentSubject, Power, Subject  # noqa: E402

__all__ = ["ALL_POWERS", "AttachmentLab", "AttachmentSubject", "Lab", "Power", "Subject"]
