"""The one exception that means: the user can mend this."""


class UsageError(Exception):
    """Say in one line what is wrong with the input and what to do; the command line exits with code 2."""
