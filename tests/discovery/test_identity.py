"""A distribution's name and version as the head of its metadata has them, however it was installed."""

from importlib.metadata import Distribution, distributions

import pytest

from dsv4core import probe

HEAD = "Metadata-Version: 2.4\nName: acme-v4\nVersion: 1.2.3rc1\nSummary: kernels\n"
README = "\n\nVersion: of the README\nName: somebody else\n"


class Installed(Distribution):
    """A distribution that has one file."""

    def __init__(self, file: str, text: str) -> None:
        self._file, self._text = file, text

    def read_text(self, filename: str) -> str | None:
        """Return the file's text under its own name only."""
        return self._text if filename == self._file else None

    def locate_file(self, path: object) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Never asked."""


@pytest.mark.parametrize("file", ["METADATA", "PKG-INFO"])
@pytest.mark.parametrize("text", [HEAD, HEAD + README, "Version: 1.2.3rc1\nName:   acme-v4\n" + README])
def test_identity_is_of_the_head(file: str, text: str) -> None:
    assert probe.identity(Installed(file, text)) == ("acme-v4", "1.2.3rc1")


def test_identity_agrees_with_the_standard_library() -> None:
    for distribution in distributions():
        assert probe.identity(distribution) == (distribution.name, distribution.version)
