"""Static files under an address that contains their hash, so that a browser may keep them for ever."""

import hashlib
import mimetypes
from dataclasses import dataclass
from pathlib import Path

from fastapi import Request
from fastapi.responses import Response

STATIC = Path(__file__).parent / "static"
_SERVED = {".css", ".js", ".svg"}


@dataclass(frozen=True, slots=True)
class Asset:
    content: bytes
    media_type: str
    digest: str


class Assets:
    """Every file of `static/` that a page may ask for, read once (about 150 KB)."""

    def __init__(self, folder: Path = STATIC) -> None:
        self._files: dict[str, Asset] = {}
        for path in sorted(folder.rglob("*")):
            if path.suffix in _SERVED:
                content = path.read_bytes()
                media_type = mimetypes.types_map.get(path.suffix, "application/octet-stream")
                self._files[path.relative_to(folder).as_posix()] = Asset(
                    content, media_type, hashlib.sha256(content).hexdigest()[:16]
                )

    def url(self, name: str) -> str:
        """The address of a file; KeyError for one that is not there, so that a page never links to nothing."""
        return f"/static/{self._files[name].digest}/{name}"

    async def serve(self, request: Request) -> Response:
        """Answers `/static/{digest}/{name}`; a digest of another version gets the file, but not for keeps."""
        asset = self._files.get(request.path_params["name"])
        if asset is None:
            return Response(status_code=404)
        current = request.path_params["digest"] == asset.digest
        headers = {
            "cache-control": "public, max-age=31536000, immutable" if current else "no-cache",
            "etag": f'"{asset.digest}"',
            "x-content-type-options": "nosniff",
        }
        if request.headers.get("if-none-match") == headers["etag"]:
            return Response(status_code=304, headers=headers)
        return Response(asset.content, media_type=asset.media_type, headers=headers)
