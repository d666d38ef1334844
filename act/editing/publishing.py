"""Uploading a model folder to the Hugging Face hub, without the names of folders on this machine."""

from __future__ import annotations

import re
from pathlib import Path

from act.core.errors import ActError, brief
from act.core.files import MANIFEST
from act.core.places import absolute_in, without_folders

_OURS, _PAGE = ("README.md", "recipe.yaml", "report.json"), "index.html"  # the page has scripts, full of slashes
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def require_repository(repository: str) -> None:
    """Check, before any work, that a model can be uploaded: the name of the repository, and that somebody is logged in.

    Raises:
        ActError: another form of name than ``org/name``; nobody is logged in, or the hub cannot be reached.
    """
    from huggingface_hub import HfApi

    if not _REPOSITORY.fullmatch(repository):
        raise ActError(f"the repository to push to is {repository!r}; expected a name such as org/name")
    try:
        HfApi().whoami()
    except Exception as error:  # the client passes on the errors of its HTTP library
        raise ActError(
            f"cannot push to {repository}: {brief(error)}; log in with a token that may write (hf auth login)"
        ) from error


def push(folder: str | Path, repository: str) -> str:
    """Upload a model folder as one commit, to a private repository if there is none yet, and return its address.

    Raises:
        ActError: the hub refuses it, or cannot be reached; the folder stays as it is.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api, shared = HfApi(), _without_folders(Path(folder))
    try:
        address = api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            ignore_patterns=[MANIFEST, *shared],
            commit_message="Upload a model made by act-profile",
        )
        if shared:
            api.create_commit(
                repository,
                [CommitOperationAdd(name, text.encode("utf-8", "surrogateescape")) for name, text in shared.items()],
                commit_message="Upload how it was made",
            )
    except Exception as error:  # the client passes on the errors of its HTTP library
        raise ActError(
            f"{folder} was written, but not pushed to {repository}: {brief(error)}; push it again with "
            f"hf upload {repository} {folder}"
        ) from error
    return str(address)


def _without_folders(folder: Path) -> dict[str, str]:
    """The files of ours that name absolute paths of this machine, with only the last parts of these."""
    texts = {
        name: (folder / name).read_text(encoding="utf-8", errors="surrogateescape")
        for name in (*_OURS, _PAGE)
        if (folder / name).is_file()
    }
    places = dict.fromkeys(place for name in _OURS if name in texts for place in absolute_in(texts[name]))
    changed = {name: without_folders(text, places) for name, text in texts.items()} if places else {}
    return {name: text for name, text in changed.items() if text != texts[name]}
