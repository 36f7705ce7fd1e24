"""Labels and colours of mixers: plug-ins of one beginning are told apart."""

from archloop import registry
from archloop.report.palette import distinct, label, labels


def test_the_librarys_labels_all_differ() -> None:
    found = [label(name) for name in registry.shipped("mixers")]
    assert len(set(found)) == len(found)


def test_plugins_that_share_two_letters_get_labels_of_their_own() -> None:
    names = ["peek", "peeker", "pea", "p", "p_", "gqa", "peek2"]
    given = labels(names)
    assert "gqa" not in given
    assert len(set(given.values())) == len(given) == 6
    assert not set(given.values()) & {label("gqa"), label("short_conv")}
    assert labels(reversed(names)) == given
    with distinct(names):
        assert label("peeker") == given["peeker"] != label("peek")
        assert label("gqa+peeker") == f"A+{given['peeker']}"
    assert label("peeker") == label("peek") == "PE"
