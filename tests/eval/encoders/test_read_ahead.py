import pytest
from PIL import Image

from src.eval.encoders.models import read_ahead


def sized(number, seen=None):
    """Images told apart by their width, and how many were asked for."""
    for index in range(number):
        if seen is not None:
            seen.append(index)
        yield Image.new("RGB", (20 + index, 20))


def test_batches_come_in_order_and_the_last_is_shorter():
    assert list(read_ahead(lambda image: image.width - 20, sized(7), batch=3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(read_ahead(lambda image: image.width, [], batch=3)) == []


def test_files_are_read_upright_and_images_are_taken_as_they_are(tmp_path):
    image = Image.new("RGB", (40, 20))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    (sizes,) = read_ahead(lambda image: image.size, [tmp_path / "turned.jpg", str(tmp_path / "turned.jpg"), image])
    assert sizes == [(20, 40), (20, 40), (40, 20)]


def test_never_more_than_two_batches_are_held():
    seen = []
    batches = read_ahead(lambda image: image.width, sized(100, seen), batch=5)
    for index, _ in enumerate(batches):
        assert len(seen) == min(5 * (index + 2), 100)


def test_a_file_that_cannot_be_read_is_said_where_it_stands(tmp_path):
    batches = read_ahead(lambda image: image.width, [*sized(3), tmp_path / "nothing.png"], batch=3)
    assert next(batches) == [20, 21, 22]
    with pytest.raises(ValueError, match="there is no image file"):
        next(batches)
