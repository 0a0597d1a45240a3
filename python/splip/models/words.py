"""Class names and short descriptions, as prompts take them."""

import re

ARTICLE = re.compile(r"^(an?|the)\s+(?=\S)", re.IGNORECASE)  # the template ends with one


def bare(text: str) -> str:
    """A class name or a short description without spaces around it and without its article."""
    return ARTICLE.sub("", text.strip())
