"""The push to the Hugging Face hub, through its own client."""

from __future__ import annotations

from pathlib import Path

from soup_verl.exporting import ExportError


def check(name: str) -> None:
    """What can be known before anything is written.

    Raises:
        ExportError: the name is none of a repository, the hub is switched off, or there is no token.
    """
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
        well_formed = name.count("/") == 1
    except HFValidationError:
        well_formed = False
    if not well_formed:
        raise ExportError(f"--push={name}: expected OWNER/NAME, of letters, digits, '-', '_' and '.'")
    if constants.HF_HUB_OFFLINE:
        raise ExportError(f"--push={name}: HF_HUB_OFFLINE is set. Unset it, or export without --push.")
    if get_token() is None:
        raise ExportError(f"--push={name}: no token of the hub. Set HF_TOKEN, or run `hf auth login`.")


def push(folder: Path, name: str) -> str:
    """Upload the folder's files as one commit; a repository that is not there yet is made, private.

    Returns:
        The address of the commit.

    Raises:
        ExportError: the hub cannot be reached or refuses; the folder stays.
    """
    from huggingface_hub import HfApi

    try:
        HfApi().create_repo(name, private=True, exist_ok=True)
        return str(HfApi().upload_folder(repo_id=name, folder_path=folder, commit_message=f"Export of {folder.name}"))
    except Exception as error:  # the client's, those of its http library, and of its uploads
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ExportError(f"--push={name}: {said}. {folder} is whole: hf upload {name} {folder}") from None
