"""Opening a study to work on it: by one process at a time, and by its own recipe alone.

How it goes:

1. Whatever the folder and the database know under this name is compared with the recipe; another
   study is refused before a byte is written.
2. Folder and database are locked, and compared once more: another run may have come first.
3. What one of the two lacks is rebuilt from the other as far as it goes. A folder that was emptied
   gets its card and recipe back; what its trials' files told beyond the database is gone.
"""

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import NamedTuple

from archloop.errors import UserError
from archloop.store import connection
from archloop.store.database import Database
from archloop.store.folder import StudyFolder
from archloop.store.identity import Card, difference, of_data
from archloop.store.lock import exclusive, exclusive_in


class OtherStudyError(UserError):
    """The folder or the database has another study under this name."""


class _Found(NamedTuple):
    """What was there already.

    Attributes:
        in_folder: the folder's card.
        in_database: the database's card.
        replaced: it is a first attempt that ended before any work, such as by a corpus that is
            not there; a corrected recipe may take its place.
    """

    in_folder: Card | None
    in_database: Card | None
    replaced: bool


@contextmanager
def opened(folder: StudyFolder, card: Card, source: bytes, url: str | None) -> Iterator[Database]:
    """A study's database, made if there is none, with the study locked.

    Args:
        folder: of the study; made if missing.
        card: what the recipe says; its id counts only if the study is new.
        source: of the recipe, kept for people.
        url: of the database; None means SQLite in the folder.

    Raises:
        OtherStudyError: another study has this folder, or this name in the database.
        StudyBusyError: another process runs it.
        UserError: the database cannot be opened, or follows another schema.
        OSError: the folder cannot be written.
    """
    _look(folder, card, url)
    folder.path.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.enter_context(exclusive(folder.path))
        if url is not None:
            stack.enter_context(exclusive_in(url, card.name))
        found = _look(folder, card, url)
        if found.replaced:
            folder.remove_card()
            if found.in_database is not None:
                connection.remove_study(folder.path, url, card.name)
            found = _Found(None, None, False)
        card = found.in_database or found.in_folder or card
        if found.in_folder is None:
            folder.write_card(card, source)
        yield stack.enter_context(closing(connection.open_database(folder.path, url, card)))


def _look(folder: StudyFolder, card: Card, url: str | None) -> _Found:
    """Compare without writing; an error if another study is there."""
    in_folder = folder.read_card()
    in_database, begun = _in_database(folder, card.name, url)
    if in_folder and in_database and in_folder.id != in_database.id:
        raise OtherStudyError(
            f"{folder.path} belongs to another study named {card.name!r} than the database's; "
            "move the folder away, or give the recipe another name"
        )
    replaceable = in_folder is not None and not begun and not folder.begun()
    kept = in_folder or in_database
    if kept is None or kept.digest == card.digest or replaceable:
        return _Found(in_folder, in_database, kept is not None and kept.digest != card.digest)
    what = difference(kept.settings, card.settings) or "a plug-in's source has changed"
    if in_folder is None:
        raise OtherStudyError(
            f"storage: the database has another study named {card.name!r} ({what}); give the "
            "recipe another name"
        )
    raise OtherStudyError(
        f"{what}, unlike the study in {folder.path}; give the recipe another name, or "
        f"restore it (a copy is {folder.recipe_copy})"
    )


def _in_database(folder: StudyFolder, name: str, url: str | None) -> tuple[Card | None, bool]:
    """The card in the database, and whether any work was done under it."""
    database = connection.peek(folder.path, url, name)
    if database is None:
        return None, False
    with closing(database):
        attributes = database.attributes()
        begun = database.has_trials() or "reference_run" in attributes
        if "card" not in attributes and not begun:
            return None, False
        where = f"{folder.path}" if url is None else f"storage: study {name!r}"
        return of_data(attributes.get("card"), where), begun
