"""The one kind of error that a user's input can cause at the command line."""


class InputError(ValueError):
    """Something that the user gave cannot be used. The message says in one line what came, what was wanted, what to do.

    The command line prints it without a traceback and exits with 2. In a program it is a ValueError like any other.
    """
