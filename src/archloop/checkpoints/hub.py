"""From a name to a folder: a local path as it is, a hub id through the Hugging Face cache."""

from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from archloop.errors import UserError
from archloop.text.fetch.hub import is_id

_PATTERNS = [
    "config.json",
    "spec.json",
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
]
"""What is downloaded: never code, never pickles, no second copy of the weights."""


def resolve(path_or_hub_id: str | Path, revision: str | None = None) -> Path:
    """The folder of a checkpoint, downloaded if need be.

    Raises:
        UserError: neither a folder nor a hub id, no such repository, or the hub cannot be reached
            and the checkpoint is not in the local cache.
    """
    path = Path(path_or_hub_id)
    if path.is_dir():
        return path
    name = str(path_or_hub_id)
    if path.exists():
        raise UserError(f"{name} is a file; give the checkpoint's folder")
    no_name = UserError(f"{name} is no folder, and no hub id such as LiquidAI/LFM2-350M")
    if not is_id(name):
        raise no_name
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_PATTERNS))
    except HFValidationError as error:
        raise no_name from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        if isinstance(error, RepositoryNotFoundError):
            raise UserError(f"the hub has no repository {name!r}, or it is private") from error
        if isinstance(error, HfHubHTTPError):
            raise UserError(f"the hub refused {name!r}: {error}") from error
        offline = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "it cannot be reached"
        raise UserError(
            f"offline: {name!r} is no local folder and not in the local cache, and the hub was not "
            f"asked or did not answer ({offline}). Go online, or give a local folder"
        ) from error
