"""Reads a repository on a model hub with the library huggingface_hub: the list of its files, and their bytes."""

import contextlib
import json
import logging
import os
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import urlsplit

from api import package_version
from api.models.files import ModelFilesError

LIBRARY: Final = "cortex"
PLAIN: Final = {
    "HF_HUB_DISABLE_XET": "1",  # another process cannot resume Xet downloads
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
"""Environment variables that the library reads when it is imported."""
_TIMEOUTS: Final = ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT")
"""The library reads these at import too, without a check."""
_MAX_SECONDS: Final = 1_000_000
_TRANSIENT: Final = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)


class HubError(ModelFilesError):
    """A download that failed or cannot be used. The message is one line for the user."""


class RefusedError(HubError):
    """The hub sends nothing now. Bytes received before remain valid."""


class UnreachableError(RefusedError):
    """The hub cannot be reached or has a temporary error. A later attempt may succeed."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repository."""

    path: str
    size: int
    sha256: str | None
    """None for files that are not in large file storage."""
    git_id: str | None
    """The id of the git blob."""


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a repository at one commit."""

    commit: str
    files: dict[str, RemoteFile]
    """Files by path."""


class Repository:
    """One revision of a repository, at $HF_ENDPOINT or Hugging Face, read with $HF_TOKEN if there is one."""

    def __init__(self, name: str, revision: str) -> None:
        """Raises HubError if $HF_ENDPOINT is not a valid URL, or a timeout variable is not a number."""
        self.name = name
        self.revision = revision
        endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or None
        if endpoint is not None:
            _check_address(endpoint)
        for variable in _TIMEOUTS:
            _check_seconds(variable)
        os.environ.update(PLAIN)
        # Imported late: the import is slow, and it reads these variables.
        import huggingface_hub
        from huggingface_hub.utils.logging import set_verbosity

        set_verbosity(logging.CRITICAL + 1)  # errors are reported in one line instead
        self._library = huggingface_hub
        self._api = huggingface_hub.HfApi(endpoint, library_name=LIBRARY, library_version=package_version())
        self._endpoint: str = self._api.endpoint
        self.host = urlsplit(self._endpoint).netloc

    def listing(self) -> Listing:
        """The files of the revision. Raises HubError if the hub does not list them."""
        with self._readable_errors():
            try:
                (self._library.get_token() or "").encode("ascii")
            except UnicodeError as error:
                raise HubError("HF_TOKEN, or the token file, has no valid token: it is not ASCII") from error
            try:
                info = self._api.model_info(
                    self.name, revision=self.revision, files_metadata=True, timeout=self._timeout
                )
                siblings = info.siblings or []
                files = [
                    RemoteFile(file.rfilename, int(file.size or 0), file.lfs.sha256 if file.lfs else None, file.blob_id)
                    for file in siblings
                ]
            except (json.JSONDecodeError, UnicodeDecodeError, TypeError, KeyError, AttributeError) as error:
                raise HubError(f"{self.host} is not a model hub: its answer is not a list of files") from error
        return Listing(info.sha or self.revision, {file.path: file for file in files})

    @contextlib.contextmanager
    def read(self, commit: str, path: str, offset: int) -> Iterator[tuple[int, Iterator[bytes]]]:
        """Stream a file. Yields the offset of the first byte and the pieces.

        The first byte is at `offset`, or at 0 if the hub does not support ranges. Raises HubError if the hub refuses,
        UnreachableError if the connection is lost.
        """
        from huggingface_hub import get_session, hf_raise_for_status
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # though it is documented

        url = self._library.hf_hub_url(self.name, path, revision=commit, endpoint=self._endpoint)
        headers = build_hf_headers(library_name=LIBRARY, library_version=package_version())
        headers |= {"Accept-Encoding": "identity", "Range": f"bytes={offset}-"}
        with (
            self._readable_errors(path),
            get_session().stream("GET", url, headers=headers, timeout=self._timeout) as response,
        ):
            if offset and response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                with self.read(commit, path, 0) as whole:
                    yield whole
                return
            hf_raise_for_status(response)
            partial = response.status_code == HTTPStatus.PARTIAL_CONTENT
            yield (offset if partial else 0), response.iter_bytes()

    @property
    def _timeout(self) -> float:
        return float(self._library.constants.HF_HUB_DOWNLOAD_TIMEOUT)

    @contextlib.contextmanager
    def _readable_errors(self, path: str = "") -> Generator[None]:
        import httpx2  # the HTTP client of the library
        from huggingface_hub import errors

        name, host = self.name, self.host
        try:
            yield
        except errors.OfflineModeIsEnabled as error:
            raise RefusedError("nothing can be downloaded while HF_HUB_OFFLINE is set") from error
        except errors.GatedRepoError as error:
            terms = f"accept its terms at {self._endpoint}/{name}"
            raise RefusedError(f"{name} is gated: {terms}, and set HF_TOKEN to your token") from error
        except errors.RevisionNotFoundError as error:
            raise RefusedError(f"{name} has no revision {self.revision} at {host}") from error
        except errors.RemoteEntryNotFoundError as error:
            raise RefusedError(f"{name} has no file {path} at {host}") from error
        except errors.RepositoryNotFoundError as error:
            raise RefusedError(f"{host} has no repository {name}; if it is private, set HF_TOKEN") from error
        except errors.HfHubHTTPError as error:
            raise self._refusal(error.response) from error
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            reason = str(error).rstrip(".") or type(error).__name__
            raise UnreachableError(f"{host} cannot be reached: {reason}") from error
        except errors.HFValidationError as error:
            raise HubError(f"{name} is not a valid name of a repository: {error}") from error

    def _refusal(self, response: Any) -> RefusedError:
        status = response.status_code
        refusal = f"{self.host} answered {status} {response.reason_phrase}".rstrip()
        if status == HTTPStatus.NOT_FOUND:
            return RefusedError(f"{self.host} has no repository {self.name}, or no revision {self.revision} of it")
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            return RefusedError(f"{refusal} for {self.name}: set HF_TOKEN to a token that may read it")
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in _TRANSIENT:
            return UnreachableError(refusal)
        return RefusedError(f"{refusal} for {self.name}")


def _check_address(endpoint: str) -> None:
    try:
        address = urlsplit(endpoint)
        is_address = address.scheme in ("http", "https") and bool(address.hostname) and address.port != 0
    except ValueError:
        is_address = False
    if not is_address:
        raise HubError(f"HF_ENDPOINT is {endpoint!r}, which is not a valid URL")


def _check_seconds(variable: str) -> None:
    value = os.environ.get(variable, "0")
    try:
        is_time = 0 <= int(value) <= _MAX_SECONDS
    except ValueError:
        is_time = False
    if not is_time:
        raise HubError(f"{variable} is {value!r}, which is not a whole number of seconds up to {_MAX_SECONDS:,}")
