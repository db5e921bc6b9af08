"""Photographs as people keep them: links in circles, fifos, rotated, huge, in 16 bits, broken in the middle."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fragile_lib.data import photographs
from fragile_lib.data.folder import list_folder


def draw(path: Path, **settings: object) -> np.ndarray:
    """Write a photograph of noise and return its pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **settings)
    return pixels


def read(path: Path, size: int = 64) -> photographs.Photo:
    """Read the one photograph of a folder of classes."""
    return photographs.PhotoSet(list_folder(path.parents[1]), size)[0]


def test_links_in_circles_and_what_is_no_file_are_named_and_passed_over_at_once(tmp_path):
    for name in ("ant/0.png", "bee/inner/1.png"):
        draw(tmp_path / name)
    ant, bee = tmp_path / "ant", tmp_path / "bee"
    os.mkfifo(ant / "fifo.png")
    os.mkfifo(ant / "fifo-without-an-image's-name")
    (ant / "device.png").symlink_to("/dev/zero")
    (ant / "nowhere.png").symlink_to("gone.png")
    (ant / "itself").symlink_to("itself")
    (bee / "inner" / "up").symlink_to(tmp_path)
    (bee / "linked.png").symlink_to(ant / "0.png")
    (tmp_path / "cow").symlink_to("cow")
    odd = "cow, ant/device.png, ant/fifo.png, ant/itself, ant/nowhere.png, bee/inner/up"
    with pytest.warns(UserWarning) as told:
        listing = list_folder(tmp_path)
    assert str(told[0].message).endswith(f": {odd}")
    assert [listing.name(row) for row in range(len(listing))] == ["ant/0.png", "bee/inner/1.png", "bee/linked.png"]
    assert listing.classes == ("ant", "bee")


def test_a_camera_s_note_of_orientation_is_not_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    draw(tmp_path / "plain" / "a" / "0.png")
    draw(tmp_path / "turned" / "a" / "0.png", exif=exif)
    plain, turned = (read(tmp_path / name / "a" / "0.png") for name in ("plain", "turned"))
    assert Image.open(tmp_path / "turned" / "a" / "0.png").getexif()[0x0112] == 6
    assert plain.pixels.equal(turned.pixels) and not turned.note


def test_more_pixels_than_can_be_held_are_refused_before_they_are_decoded(tmp_path, monkeypatch, recwarn):
    path = tmp_path / "a" / "0.png"
    draw(path)
    monkeypatch.setattr(photographs, "MOST_PIXELS", 64 * 64 - 1)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64 - 1)
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("was decoded"))
    found = read(path)
    assert found.pixels is None and found.note == "has 64 x 64 pixels; 4095 at most" and not len(recwarn)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # from twice its own limit on Pillow refuses itself
    assert "exceeds limit" in read(path).note


def test_colour_of_16_bits_counts_by_its_upper_eight(tmp_path):
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    upper = draw(tmp_path / "eight" / "a" / "0.png")
    lower = np.random.default_rng(1).integers(0, 256, upper.shape, dtype=np.uint8)
    rows = [b"\0" + row.tobytes() for row in np.stack([upper, lower], axis=-1)]
    head = struct.pack(">IIBBBBB", 64, 64, 16, 2, 0, 0, 0)
    parts = chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(b"".join(rows))), chunk(b"IEND", b"")
    path = tmp_path / "sixteen" / "a" / "0.png"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    eight, sixteen = read(tmp_path / "eight" / "a" / "0.png"), read(path)
    assert sixteen.pixels.equal(eight.pixels) and not sixteen.note


def test_a_jpeg_cut_short_is_told_and_one_damaged_in_its_middle_is_not(tmp_path):
    path = tmp_path / "a" / "0.jpg"
    draw(path)
    whole, content = read(path), bytearray(path.read_bytes())
    path.write_bytes(content[: len(content) // 2])
    assert read(path).pixels is None and "truncated" in read(path).note
    middle = len(content) // 2
    content[middle : middle + 40] = bytes(40)
    path.write_bytes(content)
    damaged = read(path)
    assert not damaged.note and not damaged.pixels.equal(whole.pixels)
