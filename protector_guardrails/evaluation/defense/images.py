"""The image of a case: nothing but a file on disk, in a form that models take, of a sane size."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from protector_guardrails.evaluation.defense.mllms import UnanswerableError

if TYPE_CHECKING:
    from PIL.Image import Image

    from protector_guardrails.evaluation.defense.cases import Case

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MOST_BYTES = 40 << 20
MOST_PIXELS = 40_000_000


class UnreadableImageError(UnanswerableError):
    """The image of a case is missing, damaged, too large, or in no form that models take."""


def check_askable(case: Case) -> None:
    """See that what a case asks is there; of recorded answers only parts of it may be known.

    Raises:
        UnreadableImageError: If only a description of its image is there.
        UnanswerableError: If there is neither a question nor an image.
    """
    if case.image is None and case.description is not None:
        raise UnreadableImageError("the image is not there, only its description")
    if case.image is None and not case.question:
        raise UnanswerableError("the question is not told, only a recorded answer to it")


def read_image(path: Path) -> tuple[bytes, str, Image]:
    """The bytes of an image, its MIME type by content, and the decoded picture (the first of several).

    Raises:
        UnreadableImageError: If it cannot be read; names the file, not its folder.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        if path.stat().st_size > MOST_BYTES:
            raise UnreadableImageError(f"{path.name} is larger than {MOST_BYTES >> 20} MiB")
        data = path.read_bytes()
        picture = Image.open(BytesIO(data), formats=FORMATS)
        if picture.width * picture.height > MOST_PIXELS:
            raise UnreadableImageError(f"{path.name} has {picture.width} x {picture.height} pixels, which is too many")
        mime_type = Image.MIME[picture.format or ""]
        picture.load()
    except UnidentifiedImageError as error:
        raise UnreadableImageError(f"{path.name} is no image in one of the forms {', '.join(FORMATS)}") from error
    except (OSError, ValueError, SyntaxError, KeyError, EOFError, Image.DecompressionBombError) as error:
        raise UnreadableImageError(f"{path.name} cannot be read ({type(error).__name__})") from error
    return data, mime_type, picture
