"""The secrets that open sessions, keys and links: how they are made, and what the database keeps of them."""

import hashlib
import secrets

SESSION_PREFIX, REFRESH_PREFIX, KEY_PREFIX, ONE_TIME_PREFIX = "vss_", "vsr_", "vsk_", "vst_"


def new_token(prefix: str) -> str:
    """A secret of 256 random bits, with a prefix that says what it opens."""
    return prefix + secrets.token_urlsafe(32)


def prefix_of(key: str) -> str:
    """What of a key is kept and shown, to recognise it by."""
    return key[:12]


def token_hash(token: str) -> bytes:
    """What the database keeps of a token: its SHA-256. The token has 256 random bits, so no salt is needed."""
    return hashlib.sha256(token.encode()).digest()
