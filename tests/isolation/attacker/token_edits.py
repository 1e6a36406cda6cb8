"""Tokens that were never signed: edits of valid ones, and tokens made in other ways; a seed gives the same again."""

import base64
import hashlib
import hmac
import random
import string
from collections.abc import Callable, Iterator

from vanilla_saas.database.context import ContextSigner

PRINTABLE = [c for c in string.printable if c not in "\x0b\x0c"]
LOOK_ALIKES = {
    **{str(d): chr(0xFF10 + d) for d in range(10)},  # full-width digits
    **dict(zip("aceopxyv", "\u0430\u0441\u0435\u043e\u0440\u0445\u0443\u0475", strict=True)),  # Cyrillic
    ".": "\u2024",  # one dot leader
    "-": "\u2010",
}
INVISIBLE = ("\u200b", "\ufeff", "\u0301", "\u202e", "\u00a0", "\u00ad")
PADDING = (" ", "\t", "\n", "\r\n", "0", "+", "-", "=", "''", '"', "%00", "\\", ";")

Edit = Callable[[random.Random, str, str], str]


def _replace(dice: random.Random, good: str, other: str) -> str:
    at = dice.randrange(len(good))
    return good[:at] + dice.choice(PRINTABLE) + good[at + 1 :]


def _insert(dice: random.Random, good: str, other: str) -> str:
    at = dice.randrange(len(good) + 1)
    return good[:at] + dice.choice(PRINTABLE) + good[at:]


def _delete(dice: random.Random, good: str, other: str) -> str:
    at = dice.randrange(len(good))
    return good[:at] + good[at + 1 :]


def _several(dice: random.Random, good: str, other: str) -> str:
    for _ in range(dice.randrange(2, 9)):
        good = dice.choice((_replace, _insert, _delete, _transpose))(dice, good, other)
    return good


def _transpose(dice: random.Random, good: str, other: str) -> str:
    at = dice.randrange(len(good) - 1)
    return good[:at] + good[at + 1] + good[at] + good[at + 2 :]


def _truncate(dice: random.Random, good: str, other: str) -> str:
    at = dice.randrange(1, len(good))
    return dice.choice((good[:at], good[at:], good[: -dice.randrange(1, 65)]))


def _extend(dice: random.Random, good: str, other: str) -> str:
    more = "".join(dice.choices(PRINTABLE, k=dice.randrange(1, 60)))
    return dice.choice((good + more, more + good, f"{good}.{more}", f"{good}.{good[-64:]}", f"{good}{other}"))


def _swap_fields(dice: random.Random, good: str, other: str) -> str:
    """Fields of two valid tokens mixed, one of them at least from each."""
    ours, theirs = good.split("."), other.split(".")
    return ".".join(dice.choice(pair) for pair in zip(ours, theirs, strict=True))


def _move_field(dice: random.Random, good: str, other: str) -> str:
    fields = good.split(".")
    fields.insert(dice.randrange(len(fields)), fields.pop(dice.randrange(len(fields))))
    return ".".join(fields)


def _cross(dice: random.Random, good: str, other: str) -> str:
    at = dice.randrange(1, len(good))
    return good[:at] + other[at:]


def _case(dice: random.Random, good: str, other: str) -> str:
    return "".join(c.upper() if dice.random() < 0.1 else c for c in good)


def _look_alike(dice: random.Random, good: str, other: str) -> str:
    known = [i for i, c in enumerate(good) if c in LOOK_ALIKES]
    for at in dice.sample(known, dice.randrange(1, 4)):
        good = good[:at] + LOOK_ALIKES[good[at]] + good[at + 1 :]
    return good


def _invisible(dice: random.Random, good: str, other: str) -> str:
    at = dice.randrange(len(good) + 1)
    return good[:at] + dice.choice(INVISIBLE) + good[at:]


def _pad_field(dice: random.Random, good: str, other: str) -> str:
    fields = good.split(".")
    at = dice.randrange(len(fields))
    pad = dice.choice(PADDING) * dice.randrange(1, 4)
    fields[at] = dice.choice((pad + fields[at], fields[at] + pad, pad, ""))
    return ".".join(fields)


def _number(dice: random.Random, good: str, other: str) -> str:
    """Another expiry, later above all."""
    fields = good.split(".")
    now = int(fields[5])
    fields[5] = str(dice.choice((now + dice.randrange(1, 10**6), dice.randrange(10**19), -now, f"{now}e9")))
    return ".".join(fields)


def _version(dice: random.Random, good: str, other: str) -> str:
    fields = good.split(".")
    fields[0] = dice.choice(("v0", "v2", "V1", "v01", "v1 ", "1", "none", "HS256", "")) + dice.choice(("", "1", "v1"))
    return ".".join(fields)


def _digits(dice: random.Random, good: str, other: str) -> str:
    """A guessed signature."""
    return f"{good[:-64]}{dice.getrandbits(256):064x}"


EDITS: tuple[Edit, ...] = (
    _replace, _insert, _delete, _several, _transpose, _truncate, _extend, _swap_fields, _move_field, _cross,
    _case, _look_alike, _invisible, _pad_field, _number, _version, _digits,
)  # fmt: skip


def other_algorithms(signer: ContextSigner, good: str) -> Iterator[str]:
    """The payload under every signature that a verifier might be talked into."""
    payload = good[:-65]
    for algorithm in sorted(hashlib.algorithms_guaranteed):
        if not algorithm.startswith("shake"):
            keyed = hmac.new(signer.key, payload.encode(), algorithm).hexdigest()
            plain = hashlib.new(algorithm, payload.encode()).hexdigest()
            for signature in (keyed, plain) if algorithm != "sha256" else (plain,):
                yield from (
                    f"{payload}.{signature}",
                    f"{payload}.{signature[:64]}",
                    f"{payload}.{signature:0<64}"[:220],
                )
    digest = hmac.new(signer.key, payload.encode(), hashlib.sha256).digest()
    other_key = hmac.new(b"\x07" * 32, payload.encode(), hashlib.sha256).hexdigest()
    reversed_arguments = hmac.new(payload.encode(), signer.key, hashlib.sha256).hexdigest()
    concatenated = hashlib.sha256(signer.key + payload.encode()).hexdigest()
    empty_key = hmac.new(b"", payload.encode(), hashlib.sha256).hexdigest()
    with_dot = hmac.new(signer.key, f"{payload}.".encode(), hashlib.sha256).hexdigest()
    public_key = hmac.new(signer.key_id.encode(), payload.encode(), hashlib.sha256).hexdigest()
    for signature in (
        other_key,
        reversed_arguments,
        concatenated,
        empty_key,
        with_dot,
        public_key,
        "",
        "0" * 64,
        "none",
    ):
        yield f"{payload}.{signature}"
    for signature in (digest.hex().upper(), base64.b64encode(digest).decode(), digest[::-1].hex(), digest[:16].hex()):
        yield f"{payload}.{signature}"


def edits(seed: int, count: int, good: str, other: str) -> Iterator[str]:
    """`count` different tokens that are neither of the two and not empty, which would be no token at all."""
    dice = random.Random(seed)
    seen = {hash(good), hash(other), hash("")}
    made = 0
    while made < count:
        pair = (good, other) if dice.random() < 0.7 else (other, good)
        token = dice.choice(EDITS)(dice, *pair)
        if hash(token) not in seen:
            seen.add(hash(token))
            made += 1
            yield token
