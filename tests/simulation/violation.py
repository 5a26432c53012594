"""The error that says: a promise is broken."""


class Violation(AssertionError):
    """What the system did is not what it promises."""
