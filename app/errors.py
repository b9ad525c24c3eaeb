"""The errors that a caller of the service can cause or meet, each with its HTTP status.

Every class below becomes one RFC 9457 problem on `/v1/*` and one line on the command line.
`param` names the offending field and `detail` the offending value; internals never leak.
"""

from __future__ import annotations


class AppError(Exception):
    """Base of all errors that may be shown to a user."""

    status = 500
    code = "internal_error"
    title = "Internal error"
    user_error = True  # the console command prints these without a traceback

    def __init__(
        self, detail: str, *, param: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.param = param
        self.retry_after_s = retry_after_s


class BundleError(AppError):
    """A bundle that is missing, damaged, of another version or inconsistent."""

    code = "bad_bundle"
    title = "The model bundle cannot be used"


class GoldenMismatch(BundleError):
    """The model does not compute here what it computed where it was exported."""

    code = "golden_mismatch"


class BadJson(AppError):
    status = 400
    code = "bad_json"
    title = "The body is not valid JSON"


class BadForm(AppError):
    status = 400
    code = "bad_form"
    title = "The body is not a valid form"


class KeyMissing(AppError):
    status = 401
    code = "key_missing"
    title = "An API key is needed"


class KeyWrong(AppError):
    status = 401
    code = "key_wrong"
    title = "The API key is not valid"


class RateLimited(AppError):
    status = 429
    code = "rate_limited"
    title = "Too many requests for this key"


class QuotaExceeded(AppError):
    status = 429
    code = "quota_exceeded"
    title = "The day's characters of this key are used up"


class NotFound(AppError):
    status = 404
    code = "not_found"
    title = "There is no such resource"


class UnknownModel(NotFound):
    code = "model_not_found"
    title = "The model is not served"


class UnknownGlossary(NotFound):
    code = "glossary_not_found"
    title = "There is no such glossary"


class Exists(AppError):
    status = 409
    code = "already_exists"
    title = "The name is taken"


class MethodNotAllowed(AppError):
    status = 405
    code = "method_not_allowed"
    title = "The resource does not allow this method"


class SettingsError(AppError):
    """A setting of the server, from the environment or the command line, that cannot be used."""

    code = "bad_setting"
    title = "A setting is not valid"


class KeysError(SettingsError):
    """A file of API keys that cannot be used."""

    code = "bad_keys"


class InvalidField(AppError):
    status = 422
    code = "invalid_field"
    title = "A field is not valid"


class UnknownLanguage(InvalidField):
    code = "unknown_language"
    title = "The language or language pair is not served"


class TooLong(InvalidField):
    code = "too_long"
    title = "The text is longer than the limit"


class BadDocument(InvalidField):
    """A file that is not of its format, or not one that is safe to read."""

    code = "bad_document"
    title = "The document cannot be read"

    def __init__(self, detail: str, *, param: str | None = "file") -> None:
        super().__init__(detail, param=param)


class UnknownFormat(InvalidField):
    code = "unknown_format"
    title = "The document's format is not known"


class RequestTimeout(AppError):
    status = 408
    code = "request_timeout"
    title = "The body did not arrive in time"


class BodyTooLarge(AppError):
    status = 413
    code = "body_too_large"
    title = "The body is larger than the limit"


class UnsupportedMediaType(AppError):
    status = 415
    code = "unsupported_media_type"
    title = "The content type is not supported"


class QueueFull(AppError):
    status = 503
    code = "queue_full"
    title = "The queue is full"


class NotReady(AppError):
    """Loading or draining."""

    status = 503
    code = "not_ready"
    title = "The server is not ready"


class EngineFailed(AppError):
    """A run of the model failed and the request could not be retried."""

    status = 500
    code = "engine_failed"
    title = "The model failed on this request"


class DeadlineExceeded(AppError):
    status = 504
    code = "deadline_exceeded"
    title = "The deadline passed before the answer was complete"
