"""A download that can be cut and resumed, is checked, and is done once."""

from __future__ import annotations

import hashlib
import http.client
import re
import shutil
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import unquote, urlsplit

from filelock import FileLock

from datamodules.cache import cache_root
from zoo.checkpoints.files import CheckpointError

TRIES = 3
TIMEOUT = 30.0  # seconds without a byte


def download(url: str, sha256: str, offline: bool = False) -> Path:
    """The file of ``url`` in the cache (``$SELFZOO_CACHE/checkpoints``), downloaded if it is not there.

    What a broken connection leaves is kept and continued, by the next of three tries or the next call.

    Args:
        url: http or https.
        sha256: checksum in hexadecimal, or its first digits.
        offline: take it from the cache or fail.

    Raises:
        CheckpointError: no connection, no such file, cut short, another checksum, or not cached while offline.
    """
    name = re.sub(r"[^\w.-]", "_", Path(unquote(urlsplit(url).path)).name) or "weights"
    target = cache_root() / "checkpoints" / sha256.lower() / name
    if target.is_file():  # it got this name after its checksum was right
        return target
    if offline:
        raise CheckpointError(
            f"{url} is not in the cache ({target}), and downloads are switched off (HF_HUB_OFFLINE, SELFZOO_OFFLINE)"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):  # of several processes one downloads
        if not target.is_file():
            part = target.with_name(f"{name}.part")
            _fetch_all(url, part)
            _check(url, part, sha256.lower())
            part.rename(target)
    return target


def _fetch_all(url: str, part: Path) -> None:
    reason = ""
    for _ in range(TRIES):
        try:
            _fetch(url, part)
            return
        except urllib.error.HTTPError as error:
            raise CheckpointError(f"{url}: the server answers {error.code} {error.reason}") from error
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            reason = str(getattr(error, "reason", error))
    have = part.stat().st_size if part.exists() else 0
    raise CheckpointError(
        f"{url}: the connection broke ({reason}); {have:,} bytes are kept, the same command goes on from there"
    )


def _fetch(url: str, part: Path) -> None:
    """Append what is missing to ``part``."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "selfzoo"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing is missing, or it is not the same file: the checksum tells
            return
        raise
    with response:
        continues = response.status == 206 and f"bytes {have}-" in response.headers.get("Content-Range", "")
        start = have if continues else 0
        with part.open("ab" if continues else "wb") as file:
            shutil.copyfileobj(response, file, 1 << 20)
        length = response.headers.get("Content-Length")
        if length is not None and part.stat().st_size < start + int(length):
            raise ConnectionError(f"{part.stat().st_size:,} of {start + int(length):,} bytes")


def _check(url: str, part: Path, sha256: str) -> None:
    with part.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(sha256):
        part.unlink()  # continuing it would never help
        raise CheckpointError(
            f"{url}: the checksum is {found}, not {sha256}: the file was changed or damaged, and was deleted. "
            "Compare #sha256=... with what the publisher states"
        )
