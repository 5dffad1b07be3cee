"""The laws, on every engine of the project: exactly the public kit."""

from fastness.conformance.laws import *  # noqa: F403
