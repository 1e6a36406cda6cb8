"""Ways to break a function: its attributes, and every check inside its body, taken out of the text one at a time."""

import re
from collections.abc import Iterator

import asyncpg

from tests.isolation.catalog import LOGINS
from tests.isolation.mutant import Mutant

COLUMN = r"(?:\b\w+\.)?"
VALUE = r"(?:\(\w+\)\.)?'?[\w.]++'?(?:\(\d?\))?+(?!\()(?:::\w+)?"
CHECKS = {
    # both names of a tenant's own row: tenants_self_check makes one of them enough
    "tenant's row": rf"{COLUMN}tenant_id = (?P<row>[\w.]+) and (?:\bt\.id|(?<![\w.])id) = (?P=row)(?![\w.])",
    "tenant comparison": rf"(?:{COLUMN}\w*tenant_id|\bv_tenant|vanilla\.claim\(3\)::uuid|\bt\.id) (?:=|<>) {VALUE}",
    "tenant list": rf"{COLUMN}tenant_id in \([^()]*(?:\(\))?\)",
    "owner comparison": r"(?:\b\w+\.)?user_id = (?:vanilla\.claim\(4\)::uuid|v\.user_id|v_user\.id|v_row\.user_id)"
    r"|v_user\.id = vanilla\.claim\(4\)::uuid",
    "role check": rf"vanilla\.claim\(5\) (?:not in \([^()]*\)|is distinct from '\w+'|= '\w+')"
    rf"|{COLUMN}role (?:= '\w+'|= v_role|in \([^()]*\))|v_role = '\w+'"
    r"|not vanilla\.caller_is_operator\(\)|r\.rolsuper|pg_has_role\([^()]*\)",
    "status check": rf"(?<!, ){COLUMN}(?:status|state) (?:=|<>) '\w+'"
    rf"|{COLUMN}(?:revoked_at|rotated_at|used_at) is (?:not )?null",
    "expiry": rf"{COLUMN}(?:refresh_)?(?:expires_at|accept_until) (?:>|<=)"
    r" (?:v_now|vanilla\.clock\(\)|clock_timestamp\(\))"
    r"|split_part\(v_payload, '\.', 6\)::bigint > extract\(epoch from clock_timestamp\(\)\)",
    "signature": r"v_token = v_payload \|\| '\.' \|\| encode\(sha256\(.*?\), 'hex'\)(?= then)"
    r"|left\(v_token, 3\) = 'v1\.'|octet_length\(v_token\) between 150 and 220",
    "scopes": r"p_scopes && array\[[^]]*\]|v_caller\.scopes && array\[[^]]*\]|'[\w:]+' = any \([\w.]+\)"
    r"|p_scopes <@ array\[[^]]*\]",
    "form of a hash": r"octet_length\(p_\w+\) is distinct from 32|p_password_hash not like '[^']*'"
    r"|octet_length\(p_key\) < 32",
    "verified hash": r"v_user\.password_hash is distinct from p_verified_hash",
    "throttle": r"v_row\.failures <= p_limit",
    "amounts": r"p_actual (?:<|>) \d+|p_amount = 0|abs\(p_amount\) > \d+|v_amount < 0"
    r"|p_input < 0|p_output < 0|p_cached not between 0 and p_input",
}
"""What a check is written like, by operator. A match is replaced so that it no longer stops anything."""


async def of_functions(connection: asyncpg.Connection) -> list[Mutant]:
    """Every function of the two schemas, in attribute and in body."""
    rows = await connection.fetch(
        """
        select p.oid::regprocedure::text as name, p.pronamespace::regnamespace || '.' || p.proname as short,
            p.prosecdef as definer, p.prosrc as body, p.prosqlbody is not null as parsed,
            pg_get_functiondef(p.oid) as definition, p.proconfig::text like '%search_path%' as pinned,
            array(select l from unnest($1::text[]) l where not has_function_privilege(l, p.oid, 'execute')) as closed,
            array(select l from unnest($1::text[]) l where has_function_privilege(l, p.oid, 'execute')) as open
        from pg_proc p where p.prokind = 'f' and p.pronamespace in ('public'::regnamespace, 'vanilla'::regnamespace)
        order by 1""",
        list(LOGINS),
    )
    found: list[Mutant] = []
    for row in rows:
        found += _attributes(row)
        if not row["parsed"]:
            found += _bodies(row)
    return found


def _attributes(row: asyncpg.Record) -> Iterator[Mutant]:
    name, short = row["name"], row["short"]

    def mutant(kind: str, statement: str) -> Mutant:
        return Mutant(kind, statement, function=short)

    yield mutant("execute to all", f"grant execute on function {name} to public")
    for login in row["closed"]:
        yield mutant("execute to a login", f"grant execute on function {name} to {login}")
    for login in row["open"]:
        yield mutant("execute taken", f"revoke execute on function {name} from {login}")
    yield mutant("owner", f"alter function {name} owner to postgres")
    yield mutant("owner", f"alter function {name} owner to vanilla_operator")
    if row["definer"]:
        yield mutant("invoker", f"alter function {name} security invoker")
    else:
        yield mutant("definer", f"alter function {name} security definer")
    if row["pinned"]:
        yield mutant("search path", f"alter function {name} reset search_path")
        yield mutant("search path", f"alter function {name} set search_path = pg_temp, pg_catalog")


def _bodies(row: asyncpg.Record) -> Iterator[Mutant]:
    body = row["body"]
    quiet = _without_comments(body)
    taken: set[int] = set()
    for kind, pattern in CHECKS.items():
        for match in re.finditer(pattern, quiet):
            if _assigns(quiet, match.start()) or taken & set(range(*match.span())):
                continue
            taken |= set(range(*match.span()))
            changed = body[: match.start()] + _open(quiet, match) + body[match.end() :]
            yield _rewritten(kind, row, changed, _line(quiet, match.start(), match[0]))
    for kind, start, end in _statements(quiet):
        changed = body[:start] + "null;" + body[end:]
        yield _rewritten(kind, row, changed, _line(quiet, start, quiet[start : start + 60]))


def _rewritten(kind: str, row: asyncpg.Record, body: str, what: str) -> Mutant:
    head, tag, _ = row["definition"].partition("AS $function$")
    assert tag, row["name"]
    return Mutant(kind, f"{head}AS $function${body}$function$", function=row["short"], title=f"{row['short']}: {what}")


def _line(text: str, at: int, what: str) -> str:
    """Where it is, in words that survive an edit elsewhere: what goes, and which of its like in this body it is."""
    number = text.count(what, 0, at) + 1
    return " ".join(what.split()) + (f" ({number})" if text.count(what) > 1 else "")


def _without_comments(body: str) -> str:
    """The body with comments as spaces, so that positions stay; quotes of ours never hold two hyphens."""
    return re.sub(r"--[^\n]*", lambda m: " " * len(m[0]), body)


def _assigns(text: str, at: int) -> bool:
    """Whether a comparison is none but what an update sets, or what is sorted by."""
    before = re.split(r"\b(?:where|and|or|on|if|when|not|filter|loop|from|then|return|select|else)\b|[;]", text[:at])[
        -1
    ]
    return bool(re.search(r"\bset\b(?! search)", before)) or bool(re.search(r"order by[^()]*$", before))


def _open(text: str, match: re.Match[str]) -> str:
    """What lets everything pass where the check stood: false in the head of a refusal, true in a condition on rows."""
    head = re.split(r"\bthen\b|;|\bbegin\b", text[: match.start()])[-1]
    inside = re.search(r"\b(?:els)?if\b(.*)$", head, re.S)
    if inside and not re.search(r"\(\s*select\b", _unclosed(inside[1])):
        refuses = re.match(r".*?\bthen\s+(?:perform vanilla\.refuse|return|raise)", text[match.end() :], re.S)
        nested = inside[1].count("(") > inside[1].count(")") and "not (" in inside[1]
        return "true" if nested or not refuses else "false"
    return "true"


def _unclosed(text: str) -> str:
    """The text from its first parenthesis that is still open."""
    depth = [i for i, c in enumerate(text) if c == "("]
    closed = text.count(")")
    return text[depth[0] :] if len(depth) > closed else ""


def _statements(text: str) -> Iterator[tuple[str, int, int]]:
    """Refusals and audit rows, each a whole statement."""
    for match in re.finditer(r"perform vanilla\.(refuse|audit)\(|raise exception ", text):
        kind = {"refuse": "refusal", "audit": "audit", None: "refusal"}[match[1]]
        yield kind, match.start(), _end_of_statement(text, match.end())


def _end_of_statement(text: str, at: int) -> int:
    quoted = False
    while text[at] != ";" or quoted:
        quoted ^= text[at] == "'"
        at += 1
    return at + 1
