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


TWICE = "Name: acme-v4\nName: dsv4core\nVersion: 1.2.3rc1\nVersion: 2\n"


@pytest.mark.parametrize("text", [TWICE, "name: acme-v4\nVERSION:\t1.2.3rc1\n"])
def test_the_first_of_two_lines_counts_whatever_its_case(text: str) -> None:
    assert probe.identity(Installed("METADATA", text)) == ("acme-v4", "1.2.3rc1")


@pytest.mark.parametrize(
    ("text", "found"),
    [("", ("", "")), ("Name:\nVersion: 1\n", ("", "1")), ("Name: acme-v4\n", ("acme-v4", ""))],
)
def test_what_is_not_said_is_empty(text: str, found: tuple[str, str]) -> None:
    assert probe.identity(Installed("METADATA", text)) == found


@pytest.mark.parametrize("error", [UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"), OSError("gone")])
def test_what_cannot_be_read_is_empty(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Installed, filename: str) -> str | None:
        raise error

    monkeypatch.setattr(Installed, "read_text", refuse)
    assert probe.identity(Installed("METADATA", HEAD)) == ("", "")


def test_identity_agrees_with_the_standard_library() -> None:
    for distribution in distributions():
        assert probe.identity(distribution) == (distribution.name, distribution.version)
