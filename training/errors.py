"""Errors that a user of the training commands can cause; each message names the key or the file."""

from __future__ import annotations


class TrainingError(Exception):
    """Base class; the console command prints these without a traceback."""

    user_error = True


class ConfigError(TrainingError):
    """A recipe with an unknown key or a bad value."""


class CorpusError(TrainingError):
    """A corpus that is missing, empty or malformed."""


class CheckpointError(TrainingError):
    """A checkpoint that is missing, damaged or does not fit."""


class SaveError(CheckpointError):
    """A checkpoint or log that the disk did not take; the checkpoint before is left whole."""
