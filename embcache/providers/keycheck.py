"""What an API key may look like: something that a header can hold. No message ever holds one."""

from __future__ import annotations

from embcache.errors import ConfigError


def checked_key(name: str, key: object) -> str:
    """Return ``key`` without white space around it.

    Raises:
        ConfigError: it cannot be sent in a header; the message names the setting ``name`` and does not show it.
    """
    stripped = key.strip() if isinstance(key, str) else ""
    if not stripped or not stripped.isascii() or not stripped.isprintable() or " " in stripped:
        raise ConfigError(f"{name} is empty or holds characters that no API key has (not shown here)")
    return stripped
