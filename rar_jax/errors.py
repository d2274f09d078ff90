"""The error for mistakes that a user can correct."""


class UserError(ValueError):
    """A mistake in flags, a config, data or files. The message names the field, its value, and what to do.

    The commands print it as one line and exit with code 2. Any other exception is a defect and keeps its traceback.
    """
