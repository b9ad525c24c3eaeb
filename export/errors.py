"""What can go wrong on the way from a checkpoint to a bundle, as errors a user can act on."""

from __future__ import annotations


class ExportError(Exception):
    """Base; the console command prints these without a traceback."""

    user_error = True


class CheckpointError(ExportError):
    """A checkpoint directory that is missing, incomplete or of an unknown form."""


class TargetExists(ExportError):
    """The place to write to is taken and --force was not given."""


class VerificationFailed(ExportError):
    """The exported graph does not answer as the checkpoint does; no bundle was written."""

    def __init__(self, check: str, value: object, limit: object) -> None:
        super().__init__(f"verification failed: {check} is {value}, the limit is {limit}")
        self.check = check
        self.value = value
        self.limit = limit
