"""Encoded CIFAR-10 images to arrays, and the checks that every source shares."""

import io

import numpy as np

from mixer_common.errors import UserError

Split = tuple[np.ndarray, np.ndarray]  # images uint8 (N, 32, 32, 3), labels int32 (N,)

# A JPEG's frame header: baseline, 8 bits, 32x32, three components.
_BASELINE_32X32_RGB = b"\xff\xc0\x00\x11\x08\x00\x20\x00\x20\x03"


def decode_image(encoded: bytes | None, where: str) -> np.ndarray:
    """A PNG or JPEG file as uint8 (32, 32, 3); `where` names it in errors.

    Raises:
      UserError: it does not decode, or is not 32x32 RGB.
    """
    from PIL import Image

    if not isinstance(encoded, bytes):
        raise UserError(f"{where} has no bytes: expected a PNG or JPEG file.")
    try:
        if _BASELINE_32X32_RGB in encoded:
            # Image.open reads a JPEG's header in Python, which takes as long as all the rest: where the
            # header is the expected one, the decoder can be asked at once.
            image = Image.frombytes("RGB", (32, 32), encoded, "jpeg", "RGB", "")
        else:
            image = Image.open(io.BytesIO(encoded), formats=("PNG", "JPEG"))
        if image.size != (32, 32) or image.mode != "RGB":
            width, height = image.size
            raise UserError(f"{where} is {width}x{height} in mode {image.mode}: expected 32x32 in mode RGB.")
        return np.frombuffer(image.tobytes(), np.uint8).reshape(32, 32, 3)
    except UserError:
        raise
    # Pillow raises whatever the broken bytes lead it to.
    except Exception as error:
        reason = "no PNG or JPEG file" if isinstance(error, Image.UnidentifiedImageError) else error
        raise UserError(f"{where} does not decode ({reason}): fetch the file again.") from error


def check_labels(labels: np.ndarray, where: str) -> None:
    """Raises a UserError unless there is at least one label and all are 0 to 9."""
    if len(labels) == 0:
        raise UserError(f"{where} holds no image: expected at least one.")
    wrong = labels[(labels < 0) | (labels > 9)]
    if len(wrong):
        raise UserError(f"{where} holds the label {wrong[0]}: expected 0 to 9, CIFAR-10's ten classes.")
