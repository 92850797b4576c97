"""The errors that Polyfield raises: what a caller may catch, by the kind of fault.

Every text says what was expected, what came and what to do. The command line prints it as one line and exits with 2.
"""


class ShapeError(ValueError):
    """A tensor has the wrong shape, dtype, device or layout."""


class ConfigError(ValueError):
    """A setting is out of range, or settings contradict each other."""


class FormatError(ValueError):
    """A file or folder is not what it should be; the text names the file and the byte, line or key."""


class NativeError(RuntimeError):
    """The native library is missing where it was demanded, or one of its functions failed."""
