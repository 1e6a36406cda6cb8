"""Passwords: what is accepted, and Argon2id in threads, few at a time, so that sign-ins leave the cores to others."""

import asyncio
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import BoundedSemaphore
from typing import TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from vanilla_saas.database.errors import VanillaError

MIN_LENGTH, MAX_LENGTH = 12, 128
MAX_RUNNING, MAX_WAITING = 2, 100

HASHER = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)
"""OWASP's parameters for Argon2id (19 MiB, two passes, one lane): about 25 ms a password."""
_NOBODY = "$argon2id$v=19$m=19456,t=2,p=1$XYKmiwoi7y/OR232iNJaJg$SLoeqhwj30hL54O9v/J4/TEP2gnszpQN/LAZOOkeU1E"
"""A hash under the same parameters: what a sign-in of an unknown user is compared with."""

WORST = frozenset(
    """
    123456789012 1234567890123 12345678901234 123456789012345 1234567890123456 123412341234 123123123123 112233445566
    111111111111 000000000000 aaaaaaaaaaaa 1q2w3e4r5t6y 1qaz2wsx3edc qwertyuiop12 qwertyuiop123 qwertyuiopasdf
    qwertyqwerty qwerty123456 qwerty1234567 password1234 password12345 password123456 passwordpassword password1password
    mypassword123 newpassword123 changemechangeme changeme1234 letmeinletmein letmein12345 welcome12345 welcomewelcome
    iloveyou1234 iloveyouiloveyou adminadminadmin administrator administrator1 administrator123 admin1234567
    superadmin123 superadministrator abcdefghijkl abcdefghijklmnop abcd12345678 abc123abc123 secretsecret
    footballfootball correcthorsebatterystaple vanilla-saas vanillasaas123
    """.split()  # noqa: SIM905
)
"""Of the most used passwords those long enough for the policy."""

T = TypeVar("T")
# a pool of our own bounds the cores that hashing takes, and no event loop owns it
_threads = ThreadPoolExecutor(MAX_RUNNING, thread_name_prefix="password")
_room = BoundedSemaphore(MAX_RUNNING + MAX_WAITING)


async def hash_password(password: str) -> str:
    """The Argon2id hash that the database keeps. Raises VanillaError `saturated`."""
    return await _in_turn(lambda: HASHER.hash(password))


async def verify_password(stored: str | None, password: str) -> bool:
    """Whether the password is the hash's; spends the same time when there is no hash, and is then False.

    Raises VanillaError `saturated`.
    """
    return await _in_turn(lambda: _matches(stored or _NOBODY, password)) and stored is not None


def needs_rehash(stored: str) -> bool:
    """Whether the hash was made under other parameters; a sign-in replaces it."""
    return HASHER.check_needs_rehash(stored)


def check_policy(password: str, email: str | None) -> None:
    """Raises VanillaError `invalid_request` unless the password has 12 to 128 characters, no NUL, and is neither the
    address nor one of the worst passwords."""
    plain = unicodedata.normalize("NFKC", password).casefold()
    if not MIN_LENGTH <= len(password) <= MAX_LENGTH:
        problem = f"A password has {MIN_LENGTH} to {MAX_LENGTH} characters."
    elif "\0" in password:
        problem = "A password has no NUL character."
    elif email and plain == email.casefold():
        problem = "The password is the email address."
    elif plain in WORST or len(set(plain)) < 3:
        problem = "The password is one of those that are guessed first."
    else:
        return
    raise VanillaError(
        "invalid_request", problem, {"param": "password"}, "Several words in a row are long and easy to keep."
    )


def _matches(stored: str, password: str) -> bool:
    try:
        return HASHER.verify(stored, password)
    except (VerificationError, InvalidHashError):
        return False


async def _in_turn(work: Callable[[], T]) -> T:
    if not _room.acquire(blocking=False):
        raise VanillaError("saturated", "Too many passwords are being checked.", {"retry_after_s": 2})
    try:
        return await asyncio.get_running_loop().run_in_executor(_threads, work)
    finally:
        _room.release()
