"""A user's own picture, made ready for a model."""

import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mixer_common.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

_WHITE_IS_ZERO = (262, 0)  # TIFF's tag of the photometric interpretation, and its value


def load_picture(path: Path, size: int) -> np.ndarray:
    """Reads a picture of any format that Pillow knows as uint8 (size, size, 3).

    It is rotated as its EXIF orientation says and laid over white where it is transparent. Grey values of 16 bits and
    real numbers from 0 to 1 are scaled to 8 bits. The square in its middle, as long as its shorter side, is resized to
    `size` pixels with antialiasing.

    Raises:
      UserError: the file is missing, no picture, truncated, too large, or its values have no scale that is known.
    """
    from PIL import Image, ImageOps

    path = Path(path)
    if size < 1:
        raise UserError(f"picture size {size} is not possible: expected at least 1 pixel.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # at twice its size it is an error
            with Image.open(path) as opened:
                picture = _with_8_bits(path, opened)
                picture = ImageOps.exif_transpose(picture)
                if picture.has_transparency_data:
                    picture = picture.convert("RGBA")
                    white = Image.new("RGBA", picture.size, "white")
                    picture = Image.alpha_composite(white, picture)
                picture = picture.convert("RGB")
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"there is no picture {path}: check the path.") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder: name one picture inside it.") from None
    except PermissionError:
        raise UserError(f"the picture {path} may not be read: check its permissions.") from None
    except Image.DecompressionBombError:
        raise UserError(
            f"{path} has more than {2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6:.0f} million pixels: scale it down first."
        ) from None
    # Pillow's plugins raise whatever the broken file leads them to.
    except Exception as error:
        raise UserError(
            f"{path} is not a readable picture ({error}): expected a whole file in a format that Pillow "
            "knows, such as PNG or JPEG."
        ) from error

    # `fit` cuts the square out before it resizes, so that a long thin picture needs no more memory than others.
    return np.array(ImageOps.fit(picture, (size, size), Image.Resampling.BILINEAR))


def _with_8_bits(path: Path, picture: "Image") -> "Image":
    """The picture as it is, or with deeper grey values scaled to 8 bits; Pillow would clip them to white.

    Raises UserError where the scale of the values is not known.
    """
    from PIL import Image

    if picture.mode != "F" and not picture.mode.startswith("I"):
        return picture
    # 32 bits hold a signed number; only these formats tell that theirs go to 65,535.
    has_16_bits = picture.mode in ("I;16", "I;16B", "I;16L", "I;16N") or picture.format in ("PNG", "PPM", "JPEG2000")
    values = np.asarray(picture)
    low, high = values.min(), values.max()
    if picture.mode == "F" and 0 <= low <= high <= 1:
        grey = np.rint(values * 255)
    elif picture.mode != "F" and has_16_bits and not _is_signed(picture):
        if 255 < high < 4096:
            print(
                f"warning: {path} is dark, its values of 16 bits reach {high} only; if they have 12 bits, scale them "
                "up.",
                file=sys.stderr,
            )
        grey = values // 256
    else:
        raise UserError(
            f"{path} holds grey values from {low:g} to {high:g}, whose scale is not known: save it with 8 bits, or "
            "with real numbers from 0 to 1."
        )
    grey = grey.astype(np.uint8)
    if _tag(picture, _WHITE_IS_ZERO[0]) == _WHITE_IS_ZERO[1]:
        grey = 255 - grey
    result = Image.fromarray(grey)
    transparent = picture.info.get("transparency")
    if isinstance(transparent, int):  # one value of 16 bits is transparent
        alpha = Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))
        result.putalpha(alpha)
    result.info["exif"] = picture.getexif().tobytes()
    return result


def _is_signed(picture: "Image") -> bool:
    """Whether a TIFF says that its values are signed integers."""
    return _tag(picture, 339) == 2


def _tag(picture: "Image", number: int) -> int | None:
    """The first value of a TIFF's tag; None in other formats."""
    tags = getattr(picture, "tag_v2", {})
    value = tags.get(number)
    return value[0] if isinstance(value, tuple) else value
