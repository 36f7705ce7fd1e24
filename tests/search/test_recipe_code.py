"""Which edits of a plug-in make another study of one: those of its code, and no others."""

import pytest

from archloop.search.recipe.code import what_runs

SOURCE = b'''"""A mixer."""

from x import Base


class Mine(Base):
    """Says what it is."""

    width = 3  # of the kernel

    def mix(self, x):
        """Mixes.

        Args: x.
        """
        text = """no docstring"""
        return x + self.width
'''


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"""A mixer."""', b'"""Another mixer, in other\nwords."""'),
        (b'"""A mixer."""\n', b""),
        (b'    """Says what it is."""\n', b""),
        (b"# of the kernel", b"# of the convolution\n    # and more"),
        (b"        Args: x.\n", b""),
        (
            b"x + self.width",
            b"(x +\n                self.width)".replace(b"(", b"")
            .replace(b"+\n                ", b"+  ")
            .replace(b")", b""),
        ),
        (b"\n\n\nclass", b"\n\n\n\n\nclass"),
    ],
)
def test_words_are_no_code(old: bytes, new: bytes) -> None:
    assert old in SOURCE
    assert what_runs(SOURCE.replace(old, new)) == what_runs(SOURCE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"width = 3", b"width = 4"),
        (b"no docstring", b"some text"),
        (b"x + self.width", b"x - self.width"),
        (b"        return x", b"        if x:\n            return x"),
        (b"        return x + self.width", b"    return_ = 3"),
    ],
)
def test_code_is(old: bytes, new: bytes) -> None:
    assert old in SOURCE
    assert what_runs(SOURCE.replace(old, new)) != what_runs(SOURCE)


def test_the_depth_of_a_block_is_code() -> None:
    assert what_runs(b"if a:\n    b\n    c\n") != what_runs(b"if a:\n    b\nc\n")


def test_what_is_no_python_counts_whole() -> None:
    assert what_runs(b"def (") == b"def ("
