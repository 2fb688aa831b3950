"""Verified downloads that go on where they stopped.

pooch checks the hash and moves the finished file into place; it has no resume, so the bytes are
fetched here, into a `.part` file that survives a broken connection.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

CHUNK = 1 << 20


def fetch(url: str, path: str | os.PathLike[str], known_hash: str, timeout: float = 30.0) -> Path:
    """Download `url` to `path` unless a file with the right hash is there; returns `path`.

    known_hash: "md5:..." or "sha256:...".
    timeout: seconds without a byte after which the connection counts as lost.

    The folder is made if need be. Until the hash is verified the data are in `<path>.part`; the
    next call asks the server for the rest only. `path` appears whole or not at all.

    Raises ConnectionError if the server cannot be reached or stops early (call again to resume),
    ValueError if the bytes have another hash (they are thrown away).
    """
    import pooch

    path = Path(path)
    part = path.with_name(path.name + ".part")

    def download(url: str, output: str, _: object) -> None:
        _fetch_rest(url, part, timeout)
        shutil.move(part, output)

    pooch.retrieve(url, known_hash, fname=path.name, path=path.parent, downloader=download)
    return path


def _fetch_rest(url: str, part: Path, timeout: float) -> None:
    """Append to `part` what it lacks of `url`."""
    import urllib.error
    import urllib.request

    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            # 206: the rest. 200: the server sends everything, whatever was asked.
            have = have if response.status == 206 else 0
            with open(part, "ab" if have else "wb") as file:
                shutil.copyfileobj(response, file, CHUNK)
            expected = response.headers.get("Content-Length")
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and have:  # nothing after what we have: the hash will tell
            return
        raise ConnectionError(f"cannot download {url}: the server says {error}") from None
    except OSError as error:  # includes URLError and timeouts
        raise ConnectionError(
            f"cannot download {url}: {error}. Call again to resume, or fetch it by other means "
            f"and put it at {part.with_suffix('')}"
        ) from error
    got = part.stat().st_size
    if expected is not None and got != have + int(expected):
        raise ConnectionError(
            f"{url}: the connection ended after {got:,} of {have + int(expected):,} bytes. "
            "Call again to resume"
        )
