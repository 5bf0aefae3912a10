"""The one exception that a user is meant to see."""


class Problem(Exception):
    """Bad input or a broken surrounding, told in one sentence: what is wrong, where, and what to do.

    The command line prints it on stderr without a traceback and exits with 1. Anything else that
    escapes a stage is a bug of ours, and keeps its traceback.
    """
