"""Promises of section 10 of 001 to Supabase Auth: users of ours follow theirs.

What a claim of PostgREST is believed is tried in tests/supabase: it needs Supabase's logins, which are the cluster's.
"""

from tests.isolation.promises import Case
from tests.isolation.promises_of_tenancy import SUSPENDED

# what Supabase Auth does to its table, as a call
AUTH = """create table auth_users (id uuid primary key, email text, raw_app_meta_data jsonb);
    create trigger follow after insert or update of email or delete on auth_users
        for each row execute function vanilla.follow_auth_user();
    create function auth_does(p_what text, p_id uuid, p_email text, p_meta jsonb) returns text language plpgsql as $$ begin
        if p_what = 'sign up' then insert into auth_users values (p_id, p_email, p_meta);
        elsif p_what = 'change' then update auth_users set email = p_email where id = p_id;
        else delete from auth_users where id = p_id; end if;
        return 'done'; end $$;
    grant all on auth_users to vanilla_app; grant execute on function auth_does to vanilla_app"""
THEIRS = "select auth_does('sign up', '{provider}', 'New@x.test', '%s')"
IN_A = THEIRS % '{"tenant_id": "{a}"}'
DEFAULT = "00000000-0000-7000-8000-000000000001"
# of the same id there is one in the twin, who left before
THERE = f"{AUTH}; {IN_A}"
SIGNED_IN = (
    f"{THERE}; insert into sessions (tenant_id, user_id, family_id, token_hash, refresh_hash, expires_at, refresh_expires_at, revoked_at)"
    " select '{a}', '{provider}', gen_random_uuid(), sha256(n::text::bytea), sha256(n::text::bytea), '2199-01-01', '2199-01-01',"
    " case n when 1 then '2020-01-01'::timestamptz end from generate_series(1, 2) n;"
    " insert into api_keys (tenant_id, user_id, name, prefix, key_hash, scopes, revoked_at) select '{a}', '{provider}', 'x', 'x',"
    " sha256(n::text::bytea), '{chat}', case n when 1 then '2020-01-01'::timestamptz end from generate_series(1, 2) n;"
    " insert into one_time_tokens (tenant_id, user_id, purpose, token_hash, expires_at) values ('{a}', '{provider}',"
    " 'set_password', sha256('link'), '2199-01-01')"
)
ENDED = "(select bool_and(revoked_at is not null) and count(*) filter (where revoked_at = '2020-01-01') = 1 from %s where tenant_id = '{a}' and user_id = '{provider}')"
CLOSED = (
    "(select status = 'deleted' and email is null from users where tenant_id = '{a}' and id = '{provider}')"
    f" and {ENDED % 'sessions'} and {ENDED % 'api_keys'}"
    " and (select used_at is not null from one_time_tokens where token_hash = sha256('link'))"
    " and exists (select from sessions where token_hash = {user_session} and revoked_at is null)"
    " and exists (select from api_keys where key_hash = {user_key} and revoked_at is null)"
)

CASES = [
    Case("nobody", IN_A, "= (done)", AUTH, audit="user.created",
         then="(select email = 'new@x.test' and role = 'user' and status = 'active' from users where tenant_id = '{a}' and id = '{provider}')"),
    Case("nobody", IN_A, "VS403", f"{AUTH}; {SUSPENDED}"),
    Case("nobody", THEIRS % '{"tenant_id": "{user}"}', "VS403", AUTH),
    Case("nobody", THEIRS % '{"tenant_id": "odd"}', "VS403", AUTH),
    Case("nobody", THEIRS % '{"tenant_id": "{platform}"}', "VS403", AUTH),
    Case("nobody", THEIRS % "{}", "VS403", f"{AUTH}; update tenants set self_registration = false where id = '{DEFAULT}'"),
    Case("nobody", THEIRS % "{}", "= (done)", f"{AUTH}; update tenants set self_registration = true where id = '{DEFAULT}'"),
    Case("nobody", "select auth_does('change', '{provider}', 'Other@x.test', null)", "= (done)", THERE,
         then="(select email = 'other@x.test' from users where tenant_id = '{a}' and id = '{provider}')"),
    Case("nobody", "select auth_does('leave', '{provider}', null, null)", "= (done)", SIGNED_IN, audit="user.erased", then=CLOSED),
]  # fmt: skip
