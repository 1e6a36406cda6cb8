"""Passwords: Argon2id in a thread, so that hashing one does not hold up the others' requests."""

import asyncio

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from vanilla_saas.database.errors import VanillaError

LEAST_LENGTH = 12
MOST_BYTES = 1024
_HASHER = PasswordHasher()
# compared when there is no such user, so that the answer takes as long
_NOBODY = _HASHER.hash("nobody signs in with this")


async def hash_password(password: str) -> str:
    """The Argon2id hash that the database keeps."""
    return await asyncio.to_thread(_HASHER.hash, password)


async def verify_password(stored: str | None, password: str) -> bool:
    """Whether the password is the hash's; takes the same time when there is no hash."""
    try:
        return await asyncio.to_thread(_HASHER.verify, stored or _NOBODY, password) and stored is not None
    except (VerificationError, InvalidHashError):
        return False


def check_policy(password: str, email: str) -> None:
    """Raises VanillaError `invalid_request` for a password that is too short, too long or the address itself."""
    problem = None
    if len(password) < LEAST_LENGTH:
        problem = f"A password has at least {LEAST_LENGTH} characters."
    elif len(password.encode()) > MOST_BYTES:
        problem = f"A password has at most {MOST_BYTES} bytes."
    elif email and password.casefold() in (email.casefold(), email.casefold().partition("@")[0]):
        problem = "The password is the e-mail address."
    if problem:
        raise VanillaError(
            "invalid_request", problem, {"param": "password"}, "Several words in a row are easy to keep."
        )
