"""Objects that are named by an import path on the command line."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from protector_guardrails.errors import ConfigurationError


def import_object(spec: str, *, what: str) -> Any:
    """What ``"package.module:object"`` names. Modules are looked for in the current folder too.

    Args:
        spec: The path.
        what: What it should be, for the message.

    Raises:
        ConfigurationError: If there is none; says what is wrong with the path.

    Example:
        >>> import_object("math:pi", what="number")
        3.141592653589793
    """
    module_name, _, attribute = spec.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)  # an installed command does not look there by itself
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(f"{what} {spec!r} cannot be imported: {error}") from error
    return found
