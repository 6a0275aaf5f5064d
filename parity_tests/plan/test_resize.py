"""The matrix that resizes images, against Pillow."""

import numpy as np
import pytest
from PIL import Image

from mixer_common.plan.resize import resize_matrix


@pytest.mark.parametrize(
    ("source", "target"), [(8, 32), (32, 8), (32, 13), (13, 32), (7, 7), (1, 5), (5, 1), (224, 97)]
)
def test_resize_matrix_is_pillows_bilinear(source, target):
    matrix = resize_matrix(source, target)
    assert matrix.shape == (target, source)
    assert matrix.dtype == np.float64
    np.testing.assert_allclose(matrix.sum(axis=1), 1)
    image = np.random.default_rng(0).random((source, source), np.float32)
    pillow = Image.fromarray(image, "F").resize((target, target), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(matrix @ image @ matrix.T, np.asarray(pillow), atol=1e-6)


def test_resize_matrix_of_equal_sizes_is_the_identity():
    np.testing.assert_array_equal(resize_matrix(9, 9), np.eye(9))
