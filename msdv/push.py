"""Results to the model hub."""

from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

from msdv.errors import MsdvError


def push(repository: str, folder: Path, *, private: bool) -> str:
    """Upload all files of a folder to a repository of the hub, which is made if there is none; its address.

    Raises MsdvError where that fails.
    """
    api = huggingface_hub.HfApi()
    try:
        url = api.create_repo(repository, repo_type="model", private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, repo_type="model", commit_message="Upload by msdv")
    except Exception as error:
        # Which classes stand for "no network" depends on the client's version and its HTTP library.
        raise _explain(repository, error) from error
    return str(url)


def _explain(repository: str, error: Exception) -> MsdvError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    if isinstance(error, LocalTokenNotFoundError) or status == 401:
        return MsdvError(f"--push {repository}: you are not logged in: run `hf auth login`, then export again")
    if isinstance(error, HfHubHTTPError) and status == 403:
        return MsdvError(f"--push {repository}: you may not write there: log in as its owner, or choose another name")
    return MsdvError(f"--push {repository} failed ({reason}): what was exported is kept: try again with --overwrite")
