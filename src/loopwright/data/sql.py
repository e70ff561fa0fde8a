"""Names and texts as SQL has them."""


def quote(name: str) -> str:
    """`name` as an identifier."""
    return '"' + name.replace('"', '""') + '"'


def text(value: object) -> str:
    """`value` as a text."""
    return "'" + str(value).replace("'", "''") + "'"
