"""Decodes the PNG and JPEG files of CIFAR-10, and checks labels, for every source alike."""

import io

import numpy as np

from mixer_common.errors import UserError

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
Split = tuple[np.ndarray, np.ndarray]  # images uint8 (N, 32, 32, 3), labels int32 (N,)

# A JPEG's frame header: baseline, 8 bits, 32x32, three components.
_BASELINE_32X32_RGB = b"\xff\xc0\x00\x11\x08\x00\x20\x00\x20\x03"


def decode_image(encoded: bytes | None, origin: str) -> np.ndarray:
    """A PNG or JPEG file as uint8 (32, 32, 3); `origin` names it in errors.

    Raises:
      UserError: it does not decode, or is not 32x32 RGB.
    """
    from PIL import Image

    if not isinstance(encoded, bytes):
        raise UserError(f"{origin} has no bytes: expected a PNG or JPEG file.")
    try:
        if _BASELINE_32X32_RGB in encoded:
            # Image.open reads a JPEG's header in Python, which takes as long as decoding. The decoder itself
            # needs only size and mode, which the header shows to be the expected ones.
            image = Image.frombytes("RGB", (32, 32), encoded, "jpeg", "RGB", "")
        else:
            image = Image.open(io.BytesIO(encoded), formats=("PNG", "JPEG"))
        if image.size != (32, 32) or image.mode != "RGB":
            width, height = image.size
            raise UserError(f"{origin} is {width}x{height} in mode {image.mode}: expected 32x32 in mode RGB.")
        return np.frombuffer(image.tobytes(), np.uint8).reshape(32, 32, 3)
    except UserError:
        raise
    # Pillow raises whatever the broken bytes lead it to.
    except Exception as error:
        reason = "no PNG or JPEG file" if isinstance(error, Image.UnidentifiedImageError) else error
        raise UserError(f"{origin} does not decode ({reason}): fetch the file again.") from error


def check_labels(labels: np.ndarray, origin: str) -> None:
    """Raises UserError unless there is at least one label and all are 0 to 9; `origin` names the file in it."""
    if len(labels) == 0:
        raise UserError(f"{origin} holds no image: expected at least one.")
    wrong = labels[(labels < 0) | (labels > 9)]
    if len(wrong):
        raise UserError(f"{origin} holds the label {wrong[0]}: expected 0 to 9, CIFAR-10's ten classes.")
