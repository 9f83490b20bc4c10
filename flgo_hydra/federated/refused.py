"""What no backend can honour."""


class Refused(ValueError):
    """A model or an algorithm of the user's asks for what no backend can do; the message says what to do."""
