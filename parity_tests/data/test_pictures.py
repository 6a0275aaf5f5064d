"""A user's own pictures, read as images for a model."""

import numpy as np
import pytest
from data.cifar_archives import encode
from PIL import Image

from mixer_common.data import load_picture
from mixer_common.errors import UserError


def test_picture_is_resized_by_its_shorter_side_and_cropped(tmp_path):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 120, 3), np.uint8))
    for rotated in (picture, picture.transpose(Image.Transpose.ROTATE_90)):
        rotated.save(tmp_path / "picture.png")
        loaded = load_picture(tmp_path / "picture.png", 30)
        assert loaded.dtype == np.uint8
        width, height = (size // 2 for size in rotated.size)
        halved = np.asarray(rotated.resize((width, height), Image.Resampling.BILINEAR))
        top, left = (height - 30) // 2, (width - 30) // 2
        expected = halved[top : top + 30, left : left + 30]
        np.testing.assert_allclose(loaded.astype(int), expected.astype(int), atol=1)


def test_picture_of_the_right_size_is_unchanged(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "picture.png")
    np.testing.assert_array_equal(load_picture(tmp_path / "picture.png", 32), picture)


def test_picture_is_antialiased(tmp_path):
    checkers = np.indices((64, 64)).sum(axis=0) % 2 * np.uint8(255)
    Image.fromarray(checkers.astype(np.uint8)).save(tmp_path / "picture.png")
    assert np.ptp(load_picture(tmp_path / "picture.png", 16)) < 20


def test_picture_is_turned_as_its_camera_says(tmp_path):
    picture = np.zeros((8, 8, 3), np.uint8)
    picture[:4] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # orientation: upside down
    Image.fromarray(picture).save(tmp_path / "picture.png", exif=exif)
    np.testing.assert_array_equal(load_picture(tmp_path / "picture.png", 8), picture[::-1])


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_picture_lies_on_white(tmp_path, mode):
    picture = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    if mode == "P":
        Image.new("P", (8, 8), 0).save(tmp_path / "picture.png", transparency=0)
    else:
        picture.convert(mode).save(tmp_path / "picture.png")
    assert (load_picture(tmp_path / "picture.png", 8) == 255).all()


@pytest.mark.parametrize(("mode", "file_format"), [("L", "PNG"), ("1", "PNG"), ("CMYK", "JPEG"), ("P", "GIF")])
def test_picture_of_other_modes(tmp_path, mode, file_format):
    path = tmp_path / "picture"
    Image.new("RGB", (40, 40), "white").convert(mode).save(path, file_format)
    assert (load_picture(path, 32) == 255).all()


def test_picture_of_16_bits_is_scaled_not_clipped(tmp_path):
    Image.fromarray(np.full((8, 8), 0x8000, np.uint16)).save(tmp_path / "picture.png")
    assert (load_picture(tmp_path / "picture.png", 8) == 128).all()


def test_long_thin_picture_needs_little_memory(tmp_path):
    Image.new("L", (200_000, 2), 255).save(tmp_path / "picture.png")
    assert load_picture(tmp_path / "picture.png", 224).shape == (224, 224, 3)


def test_pictures_that_are_none(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").write_bytes(b"")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    (tmp_path / "cut.jpg").write_bytes(encode(noise, "JPEG")[:2000])
    (tmp_path / "cut.png").write_bytes(encode(noise)[:6000])
    for name in ("text.png", "empty.png", "cut.jpg", "cut.png", "missing.png", ""):
        with pytest.raises(UserError) as caught:
            load_picture(tmp_path / name, 32)
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="size 0"):
        load_picture(tmp_path / "text.png", 0)
