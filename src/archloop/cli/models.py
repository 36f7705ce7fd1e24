"""The model that a command line names: a preset, or a spec's file."""

from pathlib import Path
from typing import TYPE_CHECKING

from archloop.errors import UserError

if TYPE_CHECKING:
    from archloop.stack.spec import StackSpec


def load_spec(name: str) -> "StackSpec":
    """A preset by name, or a spec from a ``.json`` file.

    Raises:
        UserError: neither exists, or the file is not a spec that can be built.
    """
    from archloop.stack import presets
    from archloop.stack.spec import StackSpec

    path = Path(name)
    if path.suffix != ".json":
        return presets.load(name)
    if not path.is_file():
        what = "is no file" if path.exists() else "does not exist"
        raise UserError(f"{path} {what}; give a preset's name or a spec file")
    from archloop.stack import cost

    try:
        spec = StackSpec.from_json(path.read_bytes())
        cost.check(spec)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return spec
