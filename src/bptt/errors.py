"""The one kind of error that a user's input can cause at the command line."""


class InputError(ValueError):
    """Something the user gave cannot be used. The message says what came, what was wanted and what to do, in one line.

    The command line prints it without a traceback and exits with 2; in a program it is a ValueError like any other.
    """
