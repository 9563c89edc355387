"""The error tree: every message says what, got, allowed, cure, in one line."""


class EcgfastError(Exception):
    """A mistake that the user can mend; the CLI prints it as one line and exits with 2."""


class ConfigError(EcgfastError, ValueError):
    """A setting, option or expression is wrong."""


class ShapeError(EcgfastError, ValueError):
    """An array has the wrong shape or dtype."""


class FormatError(EcgfastError, ValueError):
    """A file does not have the format that it should have."""


class CorruptStoreError(FormatError):
    """A store is unfinished or damaged."""


class ResumeError(EcgfastError):
    """A run cannot go on from what its folder holds."""


class BackendUnavailableError(EcgfastError, RuntimeError):
    """A requested backend cannot run on this machine."""
