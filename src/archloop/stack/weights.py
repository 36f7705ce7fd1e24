"""A decoder's tensors in safetensors files and back, its spec beside them: no pickle anywhere.

Everything that keeps weights passes here: checkpoints of any family, artifacts of the PyTorch
runtimes, trainings that can go on. A file is whole or absent. There are two ways back: `Stored`
maps a file, so that what is read is page cache that the system can drop; `fill` reads straight into
the memory of tensors that exist, for a measurement of memory, in which a mapping would count.
"""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from archloop.errors import UserError
from archloop.files import publish
from archloop.stack.spec import StackSpec
from archloop.stack.tensors import leaves

SPEC, WEIGHTS = "spec.json", "model.safetensors"
"""Files of a folder that holds a decoder in our own layout."""


def tensors(module: nn.Module, *, constants: bool = False) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name; a shared one once, under its first name.

    Args:
        module: a decoder or a part of one.
        constants: also buffers that can be computed again, and running counts.
    """
    return {leaf.name: leaf.tensor for leaf in leaves(module) if constants or leaf.is_saved}


def write(held: Mapping[str, Tensor], path: Path, header: Mapping[str, str] | None = None) -> None:
    """Write tensors to a file, which is whole or absent; its folder is made.

    Args:
        held: by name; on any device, no two sharing memory.
        path: of the file.
        header: text by key, which `Stored` gives back.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # One name for every attempt: a process that was killed leaves one draft, not many.
    draft = path.with_name(f".{path.name}.draft")
    try:
        whole = {name: tensor.detach().cpu().contiguous() for name, tensor in held.items()}
        save_file(whole, draft, metadata=dict(header or {}))
        # The library lets only the owner read its files; whoever may read the folder may read it.
        draft.chmod(path.parent.stat().st_mode & 0o666)
        publish(draft, path)
    except SafetensorError as error:
        raise OSError(f"cannot write {path}: {error}") from error
    finally:
        draft.unlink(missing_ok=True)


def write_spec(spec: StackSpec, folder: Path) -> None:
    """Write a spec beside its weights."""
    (folder / SPEC).write_text(spec.to_json() + "\n", encoding="utf-8")


class Stored:
    """The tensors of one file, memory-mapped.

    Args:
        path: of the file.
        stack: closes the file.

    Attributes:
        header: text by key, as `write` took it.
        shapes: by tensor name.
        dtypes: stored dtype codes, such as ``BF16``, by tensor name.

    Raises:
        UserError: the file is missing, truncated or malformed.
    """

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        try:
            self._file: Any = stack.enter_context(safe_open(path, framework="pt"))
            self.header: dict[str, str] = self._file.metadata() or {}
            for name in self._file.keys():  # noqa: SIM118  (no mapping, it only has keys)
                part = self._file.get_slice(name)
                self.shapes[name] = tuple(part.get_shape())
                self.dtypes[name] = part.get_dtype()
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is truncated or no safetensors file: {error}") from error

    def tensor(self, name: str) -> Tensor:
        """A view of the mapped file."""
        tensor = self._file.get_tensor(name)
        assert isinstance(tensor, Tensor)
        return tensor


def fill(into: Mapping[str, Tensor], path: Path) -> None:
    """Read a file's tensors into the memory of others, without mapping the file.

    Args:
        into: tensors by name, with the shapes and dtypes that the file has; those of a graphics
            card are filled through a buffer of each one's size.
        path: of a file that `write` made and whose checksum was compared.
    """
    with path.open("rb") as file:
        # The format: 8 bytes of header size, the header as JSON, then the bytes of all tensors.
        header_size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(header_size))
        for name, tensor in into.items():
            start, end = header[name]["data_offsets"]
            own = tensor.reshape(-1).view(torch.uint8)
            read = own if own.is_cpu else torch.empty(own.shape, dtype=torch.uint8)
            memory = read.numpy()
            assert memory.nbytes == end - start, f"{name} has another size or dtype in the file"
            file.seek(8 + header_size + start)
            num_read = file.readinto(memory.data)
            assert num_read == memory.nbytes, f"{name} is cut short"
            if read is not own:
                own.copy_(read)
