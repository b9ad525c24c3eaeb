"""How DeepL's API tells errors: `{"message": "..."}`, with 400 for a wrong field."""

from __future__ import annotations

from app.api.problems import detail
from app.errors import AppError, KeyMissing, KeyWrong, QuotaExceeded


def tell(error: AppError) -> tuple[int, dict[str, str]]:
    if isinstance(error, KeyMissing | KeyWrong):
        return 403, {"message": f"Forbidden: {error.detail}"}
    if isinstance(error, QuotaExceeded):
        return 456, {"message": f"Quota exceeded: {error.detail}"}
    return 400 if error.status == 422 else error.status, {"message": detail(error)}
