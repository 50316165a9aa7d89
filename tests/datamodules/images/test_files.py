"""Images of every kind become the picture that people see; a file that is none is named, or left out and counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.images.files import BadImageError, image_paths, read_image, readable

RAMP = np.tile(np.linspace(0, 1, 64), (8, 1))
LEVELS = np.round(RAMP * 255)


def written(folder: Path, pixels: object, mode: str | None = None, suffix: str = "png", **options: object) -> Path:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    path = folder / f"image.{suffix}"
    (image.convert(mode) if mode else image).save(path, **options)
    return path


@pytest.mark.parametrize(
    ("pixels", "suffix"),
    [
        (LEVELS.astype(np.uint8), "png"),
        ((RAMP * 65535).astype(np.uint16), "png"),
        ((RAMP * 65535).astype(np.uint16), "tif"),
        ((RAMP * 65535).astype(np.int32), "tif"),
        (LEVELS.astype(np.int32), "tif"),
        (RAMP.astype(np.float32), "tif"),
        (LEVELS.astype(np.float32), "tif"),
        ((RAMP * 65535).astype(np.float32), "tif"),
    ],
    ids=["L", "16-bit png", "16-bit tif", "int32 of 16 bits", "int32 of 8", "float to 1", "float to 255", "to 65535"],
)
def test_every_range_of_grey_becomes_eight_bits(tmp_path, pixels, suffix):
    image = read_image(written(tmp_path, pixels, suffix=suffix))
    assert image.mode == "RGB"
    for channel in np.moveaxis(np.asarray(image).astype(int), -1, 0):
        assert np.abs(channel - LEVELS).max() <= 1


def test_a_dark_image_of_sixteen_bits_stays_dark(tmp_path):
    assert np.asarray(read_image(written(tmp_path, np.full((4, 4), 200, np.uint16)))).max() == 1


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "CMYK", "RGBA", "LA"])
def test_opaque_images_of_eight_bits_are_what_pillow_makes_of_them(tmp_path, mode):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    path = written(tmp_path, pixels, mode, "tif" if mode == "CMYK" else "png")
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGB"))
        assert image.mode == mode
    assert np.array_equal(np.asarray(read_image(path)), expected)


@pytest.mark.parametrize("kind", ["RGBA", "LA", "P", "RGB key", "L key", "gif"])
def test_what_is_transparent_shows_white(tmp_path, kind):
    """A black square on a transparent ground whose hidden colour is black too."""
    options: dict[str, object] = {}
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[2:6, 2:6, 3] = 255
    image = Image.fromarray(pixels)
    if kind == "LA":
        image = image.convert("LA")
    elif kind in ("P", "gif"):  # number 0 of the palette is the ground
        image = Image.fromarray((pixels[..., 3] > 0).astype(np.uint8))
        image.putpalette([0, 0, 0] * 256)
        options = {"transparency": 0}
    elif kind in ("RGB key", "L key"):  # one colour stands for transparent
        image = Image.fromarray(np.where(pixels[..., 3] > 0, 0, 9).astype(np.uint8)).convert(kind.split()[0])
        options = {"transparency": 9 if kind == "L key" else (9, 9, 9)}
    seen = np.asarray(read_image(written(tmp_path, image, suffix="gif" if kind == "gif" else "png", **options)))
    assert (seen[2:6, 2:6] == 0).all()
    assert (seen[0] == 255).all()


def test_a_level_of_sixteen_bits_may_stand_for_transparent(tmp_path):
    seen = np.asarray(read_image(written(tmp_path, np.array([[300, 301]], np.uint16), transparency=300)))
    assert seen[0, :, 0].tolist() == [255, 1]


def test_half_transparent_colours_are_mixed_with_white(tmp_path):
    pixels = np.full((2, 2, 4), (200, 0, 0, 51), np.uint8)  # a fifth
    assert np.asarray(read_image(written(tmp_path, pixels)))[0, 0].tolist() == [244, 204, 204]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_upright(tmp_path, orientation):
    from PIL import ImageOps

    pixels = np.zeros((16, 24, 3), np.uint8)
    pixels[:8, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = written(tmp_path, pixels, suffix="png", exif=exif)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(np.asarray(read_image(path)), expected)
    assert (orientation > 4) == (expected.shape[0] == 24)


def test_the_first_frame_of_an_animation_counts(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    path = tmp_path / "image.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert np.asarray(read_image(path))[0, 0].tolist() == [255, 0, 0]


def truncated(folder: Path) -> Path:
    path = written(folder, np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8), suffix="jpg")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncated, "truncated"),
        (lambda folder: written(folder, np.full((4, 4), np.nan, np.float32), suffix="tif"), "from nan to nan; known"),
        (lambda folder: written(folder, np.full((4, 4), -5, np.int32), suffix="tif"), "values are from -5 to -5"),
    ],
    ids=["cut off", "nan", "negative"],
)
def test_a_file_that_is_no_image_is_named(tmp_path, damage, reason):
    path = damage(tmp_path)
    with pytest.raises(BadImageError, match=rf"^{path} cannot be read as an image \(.*{reason}.*on_bad_file=skip$"):
        read_image(path)


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"\x89PNG\r\n\x1a\n" + bytes(30)])
def test_foreign_files_are_named(tmp_path, content):
    path = tmp_path / "3.jpg"
    path.write_bytes(content)
    with pytest.raises(BadImageError, match=rf"^{path} cannot be read as an image \("):
        read_image(path)


def test_a_worker_passes_on_the_sentence_alone(tmp_path):
    from torch.utils.data import DataLoader

    class Broken:
        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> object:
            return read_image(truncated(tmp_path))

    with pytest.raises(BadImageError, match=rf"^{tmp_path}/image\.jpg cannot be read .*skip$"):
        next(iter(DataLoader(Broken(), num_workers=1)))


def test_skipping_counts_and_keeps_the_order(tmp_path, recwarn):
    paths = []
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        paths.append(written(tmp_path / name, LEVELS.astype(np.uint8)))
    paths[1].write_bytes(b"")
    assert readable(paths, "error", "train") == paths
    assert not recwarn.list
    with pytest.warns(UserWarning, match=rf"train: 1 of 3 files left out \(on_bad_file=skip\); the first: {paths[1]}"):
        assert readable(paths, "skip", "train") == [paths[0], paths[2]]


def test_hidden_files_and_folders_are_passed_over(tmp_path):
    for name in ("b/2.JPG", "b/1.png", "a.gif", ".ipynb_checkpoints/a.png", "b/.c/a.png", "__MACOSX/a.png", "b/._1.png",
                 "b/notes.txt"):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    assert image_paths(tmp_path) == [tmp_path / "a.gif", tmp_path / "b" / "1.png", tmp_path / "b" / "2.JPG"]
