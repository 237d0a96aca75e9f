"""What all unit tests share."""

from __future__ import annotations

from hypothesis import settings

# A busy machine, or the first import of a large library, is no failure of a property.
settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")
