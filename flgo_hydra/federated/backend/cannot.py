"""Why a form of training cannot take the place of plain steps."""


class Cannot(RuntimeError):
    """It does not do what plain steps do, or nobody can say so. The text stands in `result.json`.

    Whoever catches it takes a plainer form.
    """
