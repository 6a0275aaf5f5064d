"""A user's own pictures, read as images for a model."""

import struct
import zlib

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


GREY = (np.arange(16 * 16).reshape(16, 16)).astype(np.uint8)


def png_16(values: np.ndarray, *chunks: tuple[bytes, bytes]) -> bytes:
    """A grey PNG of 16 bits with further chunks before its pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0)
    parts = ((b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def tiff(values: np.ndarray, sample_format: int, photometric: int = 1) -> bytes:
    """A grey TIFF. sample_format: 1 unsigned, 2 signed, 3 real numbers; photometric: 0 white is zero, 1 black is."""
    data, bits = values.tobytes(), 8 * values.itemsize
    height, width = values.shape
    tags = (
        (256, 3, width), (257, 3, height), (258, 3, bits), (259, 3, 1), (262, 3, photometric), (273, 4, 8),
        (277, 3, 1), (278, 3, height), (279, 4, len(data)), (339, 3, sample_format),
    )  # fmt: skip
    entries = b"".join(
        struct.pack("<HHI", tag, kind, 1) + struct.pack("<HH" if kind == 3 else "<I", *((value, 0)[: 5 - kind]))
        for tag, kind, value in tags
    )
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


DEEP = GREY.astype(np.uint16) * 257


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(png_16(DEEP), id="PNG of 16 bits"),
        pytest.param(tiff(DEEP.astype("<u2"), 1), id="TIFF of 16 bits"),
        pytest.param(tiff((65535 - DEEP).astype("<u2"), 1, 0), id="TIFF of 16 bits where white is zero"),
        pytest.param(tiff(255 - GREY, 1, 0), id="TIFF of 8 bits where white is zero"),
        pytest.param(tiff((GREY / 255).astype("<f4"), 3), id="TIFF of real numbers"),
        pytest.param(b"P5 16 16 65535\n" + DEEP.astype(">u2").tobytes(), id="PGM of 16 bits"),
        pytest.param(b"Pf\n16 16\n-1.0\n" + (GREY[::-1] / 255).astype("<f4").tobytes(), id="PFM"),
    ],
)
def test_a_deep_picture_arrives_as_a_person_sees_it(tmp_path, data):
    (tmp_path / "picture").write_bytes(data)
    np.testing.assert_array_equal(load_picture(tmp_path / "picture", 16), np.repeat(GREY[..., None], 3, axis=2))


def test_one_grey_of_16_bits_is_transparent(tmp_path):
    (tmp_path / "picture.png").write_bytes(png_16(DEEP, (b"tRNS", struct.pack(">H", 100 * 257))))
    expected = np.where(GREY == 100, 255, GREY)
    np.testing.assert_array_equal(load_picture(tmp_path / "picture.png", 16)[..., 0], expected)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(tiff(GREY.astype("<i4"), 2), id="32 bits"),
        pytest.param(tiff(GREY.astype("<u4") * 16843009, 1), id="32 bits without a sign"),
        pytest.param(tiff(GREY.astype("<i2"), 2), id="16 bits with a sign"),
        pytest.param(tiff((GREY * 257.0).astype("<f4"), 3), id="real numbers to 65535"),
    ],
)
def test_grey_values_of_an_unknown_scale_are_refused(tmp_path, data):
    (tmp_path / "picture.tif").write_bytes(data)
    with pytest.raises(UserError, match=r"picture\.tif holds grey values from .* whose scale is not known: save it"):
        load_picture(tmp_path / "picture.tif", 16)


def test_twelve_bits_in_sixteen_are_suspected(tmp_path, capsys):
    (tmp_path / "picture.png").write_bytes(png_16(DEEP // 16))
    load_picture(tmp_path / "picture.png", 16)
    assert "picture.png is dark, its values of 16 bits reach 4095 only" in capsys.readouterr().err


@pytest.mark.parametrize("size", [(20_000, 20_000), (15_000, 15_000)])
def test_a_picture_of_too_many_pixels_is_not_read(tmp_path, size):
    Image.new("1", size).save(tmp_path / "picture.png")
    with pytest.raises(UserError, match="has more than 179 million pixels: scale it down first"):
        load_picture(tmp_path / "picture.png", 16)


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
