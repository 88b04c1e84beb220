"""Text from elsewhere, made harmless to a terminal."""


def visible(text: str) -> str:
    """Give a text whose characters a terminal cannot take for orders, and whose lines are one."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
