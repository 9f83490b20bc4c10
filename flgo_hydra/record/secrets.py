"""Passwords in addresses of databases: hidden wherever they are printed or written."""

import re

HIDDEN = "***"
_USER_AND_PASSWORD = re.compile(r"(\w://[^\s:/@]*):.*@")
_PASSWORD = re.compile(r"([?&](?:\w*password|passwd|pwd)=)[^&\s'\"]*", re.IGNORECASE)


def masked(text: str) -> str:
    """A text with the passwords of its addresses replaced: `postgresql://me:***@host/studies`."""
    return _PASSWORD.sub(rf"\g<1>{HIDDEN}", _USER_AND_PASSWORD.sub(rf"\g<1>:{HIDDEN}@", text))


def is_masked(text: str) -> bool:
    """Whether a password was taken out of a text."""
    return f":{HIDDEN}@" in text or f"={HIDDEN}" in text
