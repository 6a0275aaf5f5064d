"""scikit-learn's bundled handwritten digits: a real data set that needs no network."""

import numpy as np

from mixer_common.data.decode import Split
from mixer_common.plan.resize import resize_matrix

IMAGE_SIZE = 32


def load_digits() -> tuple[Split, Split]:
    """The training and the test split: images uint8 (N, 32, 32, 3), labels int32 (N,).

    The 1,797 images of 8x8 pixels are upscaled bilinearly and repeated to three equal channels. Every
    fifth image, from the first, is a test image: 360 of them, 1,437 for training.
    """
    from sklearn.datasets import load_digits as bundled_digits

    pixels, digits = bundled_digits(return_X_y=True)
    upscale = resize_matrix(8, IMAGE_SIZE)
    grey = upscale @ (pixels.reshape(-1, 8, 8) * (255 / 16)) @ upscale.T  # pixel values are 0..16
    grey = np.rint(grey).astype(np.uint8)
    images = np.repeat(grey[..., None], 3, axis=-1)
    labels = digits.astype(np.int32)
    is_test = np.arange(len(images)) % 5 == 0
    return (images[~is_test], labels[~is_test]), (images[is_test], labels[is_test])
