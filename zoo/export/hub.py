"""The Hugging Face hub: what :func:`zoo.export.weights.save_pretrained` writes, uploaded."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.checkpoints.files import CheckpointError
from zoo.checkpoints.sources import offline
from zoo.export.weights import save_pretrained

if TYPE_CHECKING:
    from zoo.deployable import Deployable


def push_to_hub(
    method: Deployable,
    repository: str,
    network: str | None = None,
    part: str = "whole",
    private: bool = False,
    revision: str | None = None,
    message: str = "Upload of selfzoo",
) -> str:
    """Upload a network to ``owner/name``; who uploads is whoever is logged in (``hf auth login``).

    Args:
        method: holds the network.
        repository: is made if need be.
        network: see :meth:`zoo.Method.save_pretrained`.
        part: likewise.
        private: whether a new repository is private.
        revision: branch to upload to; the repository's main one by default.
        message: of the commit.

    Returns:
        Address of the commit.

    Raises:
        CheckpointError: downloads and uploads are switched off, no such name, or the hub refuses.
    """
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(method, folder, network, part)
        return upload(Path(folder), repository, private, revision, message)


def upload(folder: Path, repository: str, private: bool, revision: str | None, message: str) -> str:
    """Upload a folder; see :func:`push_to_hub`."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if offline():
        raise CheckpointError(
            f"{repository}: uploads are switched off (HF_HUB_OFFLINE, SELFZOO_OFFLINE); save_pretrained writes the "
            "same files into a folder"
        )
    api = HfApi(library_name="selfzoo")
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=repository, folder_path=folder, revision=revision, commit_message=message
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise CheckpointError(f"hf-hub:{repository}: {' '.join(str(error).split())}") from error
    return str(done.commit_url)
