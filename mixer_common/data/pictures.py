"""A user's own picture, made ready for a model."""

from pathlib import Path

import numpy as np

from mixer_common.errors import UserError


def load_picture(path: Path, size: int) -> np.ndarray:
    """Reads a picture of any format that Pillow knows as uint8 (size, size, 3).

    It is rotated as its EXIF orientation says and laid over white where it is transparent. The square in its middle,
    as long as its shorter side, is resized to `size` pixels with antialiasing.

    Raises:
      UserError: the file is missing, no picture, or truncated.
    """
    from PIL import Image, ImageOps

    path = Path(path)
    if size < 1:
        raise UserError(f"picture size {size} is not possible: expected at least 1 pixel.")
    try:
        with Image.open(path) as opened:
            picture = ImageOps.exif_transpose(opened)
            if picture.has_transparency_data:
                picture = picture.convert("RGBA")
                white = Image.new("RGBA", picture.size, "white")
                picture = Image.alpha_composite(white, picture)
            if picture.mode.startswith("I"):
                # 16-bit grey, which Pillow would clip to white instead of scaling it to 8 bits.
                picture = Image.fromarray((np.asarray(picture) // 256).clip(0, 255).astype(np.uint8))
            picture = picture.convert("RGB")
    except FileNotFoundError:
        raise UserError(f"there is no picture {path}: check the path.") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder: name one picture inside it.") from None
    except PermissionError:
        raise UserError(f"the picture {path} may not be read: check its permissions.") from None
    # Pillow's plugins raise whatever the broken file leads them to.
    except Exception as error:
        raise UserError(
            f"{path} is not a readable picture ({error}): expected a whole file in a format that Pillow "
            "knows, such as PNG or JPEG."
        ) from error

    # `fit` cuts the square out before it resizes, so that a long thin picture needs no more memory than others.
    return np.array(ImageOps.fit(picture, (size, size), Image.Resampling.BILINEAR))
