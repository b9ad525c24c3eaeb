"""A file and the fields beside it, of a form in parts; and a file as an answer."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote

from fastapi import Request, Response
from starlette.exceptions import HTTPException

from app.api.requests import media_type, require_plain
from app.errors import BadForm, InvalidField, UnsupportedMediaType

UPLOADS = ("/v1/documents", "/translate_file", "/v2/document")
FORM_BYTES = 65_536  # of a form beside its file
_MULTIPART = "multipart/form-data"


@dataclass(frozen=True, slots=True)
class Upload:
    filename: str
    data: bytes


async def upload_of(request: Request) -> tuple[Upload | None, dict[str, str]]:
    """The part `file` and all text fields; of equal names the first counts."""
    require_plain(request)
    if (kind := media_type(request)) != _MULTIPART:
        raise UnsupportedMediaType(
            f"Content-Type is {kind or 'missing'}: send {_MULTIPART}", param="Content-Type"
        )
    upload: Upload | None = None
    fields: dict[str, str] = {}
    try:
        async with request.form(max_files=1, max_fields=20, max_part_size=FORM_BYTES) as form:
            for name, value in form.multi_items():
                if isinstance(value, str):
                    if name == "file":
                        raise InvalidField("file is a text: it needs a file name", param=name)
                    fields.setdefault(name, value)
                elif name != "file":
                    raise InvalidField(f"{name[:60]} is a file: only file may be one", param=name)
                elif upload is None:
                    upload = Upload(value.filename or "", await value.read())
    except HTTPException as error:
        raise BadForm(f"the form cannot be read: {error.detail}") from None
    return upload, fields


def attachment(name: str, data: bytes, kind: str, headers: dict[str, str]) -> Response:
    """The file for a browser to keep; a name that is not ASCII is told in both ways."""
    plain = "".join(c if " " <= c <= "~" and c not in '"\\' else "_" for c in name)
    told = f'attachment; filename="{plain}"'
    if plain != name:
        told += f"; filename*=UTF-8''{quote(name, safe='', errors='replace')}"
    return Response(data, 200, {**headers, "Content-Disposition": told}, kind)
