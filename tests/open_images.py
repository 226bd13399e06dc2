"""How many images are open at a time."""

import weakref

import pytest
from PIL import Image


class OpenImages:
    """Counts the images that are open from now on, but for those that were open before.

    Attributes:
        most: The largest number so far.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open: dict[int, weakref.ref] = {}
        self.most = 0
        init = Image.Image.__init__

        def watched(image: Image.Image) -> None:
            init(image)
            self._created(image)

        monkeypatch.setattr(Image.Image, "__init__", watched)

    def _created(self, image: Image.Image) -> None:
        key = id(image)
        self.open[key] = weakref.ref(image, lambda _: self.open.pop(key, None))
        self.most = max(self.most, len(self.open))
