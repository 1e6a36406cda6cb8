"""Promises of 001: who may do what to whom, at the door and behind it, and what a call may use."""

from tests.isolation.promises import Case, unlocked

SUSPENDED = "update tenants set status = 'suspended' where id = '{a}'"
CLOSED = "update tenants set status = 'closed' where id = '{a}'"
DISABLED = "update users set status = 'disabled' where tenant_id = '{a}' and id = '{user}'"
NEW_HASH = "$argon2id$new"
LINK = "insert into one_time_tokens (tenant_id, user_id, purpose, token_hash, expires_at) values ('{a}', '{other}', 'set_password', sha256('link'), vanilla.clock() + interval '1 hour')"
SUPER_SESSION = "insert into sessions (tenant_id, user_id, family_id, token_hash, refresh_hash, expires_at, refresh_expires_at) values ('{platform}', '{super}', gen_random_uuid(), sha256('ss'), sha256('sr'), vanilla.clock() + interval '1 hour', vanilla.clock() + interval '1 day')"


SETTLED = "update user_token_wallets set reserved_tokens = 0 where tenant_id = '{a}' and user_id = '{other}'; update user_token_holds set state = 'released', closed_at = vanilla.clock() where tenant_id = '{a}' and user_id = '{other}' and state = 'open'"
THROTTLED = "insert into sign_in_throttles select '{platform}', sha256(convert_to(x || '{word}:' || u.email, 'UTF8')), 77, vanilla.clock() from users u, (values ('email:'), ('link:')) v (x) where u.tenant_id = '{a}' and u.id = '{other}'"
# of another tenant's slug, and in a place where none is looked for
THROTTLED += "; " + THROTTLED.replace("'{word}:'", "'platform:'").replace("77", "78").replace(", ('link:')", "")
THROTTLED += "; " + THROTTLED.split(";")[0].replace("'{platform}'", "'{a}'").replace("77", "79").replace(
    ", ('link:')", ""
)

OF_ENGINE = """update api_keys set scopes = array['engine'], engine_tenant_id = '{a}', engine_id = '{engine}', engine_ref = '{word}' where tenant_id = '{a}' and id = '{key_id}';
    update workflow_executions set api_key_id = '{key_id}' where tenant_id in ('{a}', '{twin}') and id = '{running}'"""
RUN_ENDED = "(select status = 'cancelled' and reason = 'key_revoked' from workflow_executions where tenant_id = '{a}' and id = '{running}') and (select revoked_at is not null from api_keys where key_hash = {user_key})"
RUN_ENDED += " and " + unlocked("workflow_executions", "x.tenant_id = '{twin}'")


def opening(tenant: str, user: str, until: str = "vanilla.clock() + interval '1 hour'") -> str:
    values = f"'{{{tenant}}}', '{{{user}}}', 'test', {until}"
    return f"insert into tenant_openings (tenant_id, user_id, reason, expires_at) values ({values})"


def of(table: str, column: str, value: str, which: str = "token_hash = {user_session}") -> str:
    return f"update {table} set {column} = {value} where {which}"


CONTEXT = [
    *[Case("nobody", f"select vanilla.set_context('{{token_{t}}}')") for t in ("user", "admin", "lowered", "service", "super")],
    *[
        Case("nobody", f"select vanilla.set_context('{{token_{t}}}')", "VS401")
        for t in (
            "raised", "user_service", "odd", "expired", "other_key", "forged", "second_version", "too_long",
            "user_of_b", "opened", "stranger", "twin_admin",
        )
    ],
    Case("nobody", "select vanilla.set_context('{token_user}')", "VS401", SUSPENDED),
    Case("nobody", "select vanilla.set_context('{token_user}')", "VS401", DISABLED),
    Case("nobody", "select vanilla.set_context('{token_user}')", "VS401", "update vanilla.context_keys set accept_until = now()"),
    Case("nobody", "select vanilla.set_context('{token_opened}')", given=opening("a", "super")),
    Case("nobody", "select vanilla.set_context('{token_opened}')", "VS401", opening("platform", "super")),
    Case("nobody", "select vanilla.set_context('{token_opened}')", "VS401", opening("a", "admin")),
    Case("nobody", "select vanilla.set_context('{token_opened}')", "VS401", opening("a", "super", "vanilla.clock()")),
    Case("nobody", "select vanilla.set_context('{token_opened}')", "VS401",
         opening("a", "super") + "; update users set status = 'disabled' where id = '{super}'"),
    Case("nobody", "select vanilla.set_context('{token_opened}')", "VS401",
         "insert into users (tenant_id, id, email, role) values ('{platform}', '{provider}', 'x@x.test', 'superadmin');"
         + opening("a", "provider")),
    # a user of the same id in another tenant does not stand for the super admin
    Case("nobody", "select vanilla.set_context('{token_opened}')", "VS401",
         opening("a", "super") + "; update users set status = 'disabled' where id = '{super}';"
         " insert into users (tenant_id, id, email) values ('{a}', '{super}', 'x@x.test')"),
    Case("nobody", "select vanilla.claim(3)", "= ()"),
    Case("user", "select vanilla.claim(3), vanilla.claim(4), vanilla.claim(5)", "= ({a},{user},user)"),
]  # fmt: skip

TENANTS = [
    Case("super", "select create_tenant('fresh', 'Fresh')", audit="tenant.created",
         then="(select count(*) from levels l join tenants t on t.id = l.tenant_id where t.slug = 'fresh')"
              " = (select count(*) from levels where tenant_id = '{platform}' and status = 'active')"
              " and (select count(*) from level_token_policies p join tenants t on t.id = p.tenant_id where t.slug = 'fresh')"
              " = (select count(*) from level_token_policies p join levels l on l.tenant_id = p.tenant_id and l.id = p.level_id"
              " where l.tenant_id = '{platform}' and l.status = 'active')"),
    Case("super", "select create_tenant('fresh', 'Fresh')",
         given="update levels set status = 'retired' where tenant_id = '{platform}' and not is_default",
         then="(select count(*) from levels l join tenants t on t.id = l.tenant_id where t.slug = 'fresh') = 1"),
    # the same level of the platform and of the tenant: only the platform's amounts are copied
    Case("super", "select create_tenant('fresh', 'Fresh')",
         given="update level_token_policies set base_allocation = 11 where tenant_id = '{platform}'",
         then="(select bool_and(base_allocation = 11) from level_token_policies p join tenants t on t.id = p.tenant_id"
              " where t.slug = 'fresh')"),
    Case("super", "select create_tenant('fresh', 'Fresh')",
         given="update levels set slug = 'own-' || slug where tenant_id = '{a}';"
               " insert into levels (tenant_id, id, slug, name) select '{a}', id, slug, name from levels where tenant_id = '{platform}'",
         then="(select count(*) from level_token_policies p join tenants t on t.id = p.tenant_id where t.slug = 'fresh')"
              " = (select count(*) from level_token_policies where tenant_id = '{platform}')"),
    Case("operator", "select create_tenant('fresh', 'Fresh')"),
    Case("admin", "select create_tenant('fresh', 'Fresh')", "VS403"),
    Case("nobody", "select create_tenant('fresh', 'Fresh')", "VS401"),
    Case("platform user", "select create_tenant('fresh', 'Fresh')", "VS403"),
    Case("super", "select create_tenant('fresh', 'Fresh', 'Nowhere/At')", "VS400"),
    Case("super", "select create_tenant('{word}', 'Again')", "VS409"),
    Case("super", "select create_tenant('not a slug', 'Fresh')", "VS400"),
    Case("super", "select set_tenant_status('{a}', 'suspended')", audit="tenant.status",
         then="(select array_agg(status order by id = '{a}') = '{active,suspended}' from tenants where id in ('{a}', '{platform}'))"),
    Case("super", "select set_tenant_status('{a}', 'active')", given=CLOSED.replace("'closed'", "'closed', erase_at = vanilla.clock() + interval '1 s'"),
         then="(select status = 'active' and erase_at is null from tenants where id = '{a}')"),
    Case("super", "select set_tenant_status('{a}', 'active')", "VS409", CLOSED.replace("'closed'", "'closed', erase_at = vanilla.clock()")),
    Case("super", "select set_tenant_status('{a}', 'odd')", "VS400"),
    Case("super", "select set_tenant_status('{a}', null)", "VS400"),
    Case("super", "select set_tenant_status('{a}', 'closed')", "VS400"),
    Case("super", "select set_tenant_status('{platform}', 'suspended')", "VS409"),
    Case("super", "select set_tenant_status(gen_random_uuid(), 'suspended')", "VS404"),
    Case("admin", "select set_tenant_status('{a}', 'suspended')", "VS403"),
    Case("nobody", "select set_tenant_status('{a}', 'suspended')", "VS401"),
    Case("platform user", "select set_tenant_status('{a}', 'suspended')", "VS403"),
    Case("super", "select close_tenant('{a}', 'why')", "= (t)", audit="tenant.closed",
         given=LINK + "; " + opening("a", "super") + "; "
               + "update sessions set revoked_at = '2020-01-01' where token_hash = {other_session}",
         then="(select status = 'closed' from tenants where id = '{a}')"
              " and not exists (select from sessions where tenant_id = '{a}' and revoked_at is null)"
              " and exists (select from sessions where token_hash = {other_session} and revoked_at = '2020-01-01')"
              " and not exists (select from api_keys where tenant_id = '{a}' and revoked_at is null)"
              " and not exists (select from one_time_tokens where tenant_id = '{a}' and used_at is null)"
              " and not exists (select from tenant_openings where tenant_id = '{a}' and expires_at > vanilla.clock())"
              " and (select count(distinct tenant_id) from audit_logs where action = 'tenant.closed' and target_id = '{a}') = 2"),
    Case("super", "select close_tenant('{a}', 'why')", "= (t)",
         "update api_keys set revoked_at = '2020-01-01' where tenant_id = '{a}' and key_hash = {user_key}; " + LINK
         + "; update one_time_tokens set used_at = '2020-01-01' where token_hash = sha256('link')",
         then="(select revoked_at = '2020-01-01' from api_keys where tenant_id = '{a}' and key_hash = {user_key})"
              " and (select used_at = '2020-01-01' from one_time_tokens where token_hash = sha256('link'))"),
    # one that was over before is not moved
    Case("super", "select close_tenant('{a}', 'why')", "= (t)", opening("a", "super", "'2020-01-01'"),
         then="exists (select from tenant_openings where tenant_id = '{a}' and expires_at = '2020-01-01')"),
    Case("super", "select close_tenant('{a}', 'why')", "= (f)", CLOSED),
    Case("super", "select close_tenant('{a}', 'why')", "= (t)",
         "update system_configurations set value = '7' where tenant_id = '{platform}' and key = 'tenants.grace_days'",
         then="(select erase_at = vanilla.clock() + interval '7 days' from tenants where id = '{a}')"
              " and (select bool_and(erase_at is null) from tenants where id <> '{a}')"),
    Case("super", "select close_tenant('{a}', 'why', '2 days')", "= (t)",
         then="(select erase_at = vanilla.clock() + interval '2 days' from tenants where id = '{a}')"),
    Case("super", "select close_tenant('{a}', 'why', '-1 days')", "VS400"),
    Case("operator", "select close_tenant('{a}', 'why')", "= (t)"),
    Case("super", "select close_tenant('{a}', ' ')", "VS400"),
    Case("super", "select close_tenant('{platform}', 'why')", "VS409"),
    Case("super", "select close_tenant(gen_random_uuid(), 'why')", "VS404"),
    Case("admin", "select close_tenant('{a}', 'why')", "VS403"),
    Case("nobody", "select close_tenant('{a}', 'why')", "VS401"),
    Case("platform user", "select close_tenant('{a}', 'why')", "VS403"),
    Case("super", "select open_tenant('{a}', 'why')", "VS409", CLOSED),
    Case("super", "select open_tenant('{a}', 'why')", audit="tenant.opened",
         given="delete from audit_logs where action = 'tenant.opened' and tenant_id in ('{a}', '{platform}')",
         then="(select count(distinct tenant_id) from audit_logs where action = 'tenant.opened' and target_id = '{a}'"
              " and tenant_id in ('{a}', '{platform}')) = 2"),
    Case("super", "select open_tenant('{a}', ' ')", "VS400"),
    Case("super", "select open_tenant(gen_random_uuid(), 'why')", "VS404"),
    Case("admin", "select open_tenant('{a}', 'why')", "VS403"),
    Case("opened", "select open_tenant('{platform}', 'why')", "VS403"),
    Case("platform user", "select open_tenant('{a}', 'why')", "VS403"),
    Case("super", "select leave_tenant('{a}')", "= (1)", opening("a", "super"), audit="tenant.left",
         then="not exists (select from tenant_openings where tenant_id = '{a}' and user_id = '{super}' and expires_at > vanilla.clock())"),
    # another's opening goes on
    Case("super", "select leave_tenant('{a}')", "= (0)", opening("a", "admin"),
         then="exists (select from tenant_openings where tenant_id = '{a}' and user_id = '{admin}' and expires_at > vanilla.clock())"),
    Case("super", "select leave_tenant('{a}', '{admin}')", "VS403"),
    Case("operator", "select leave_tenant('{a}', '{super}')", "= (1)", opening("a", "super") + "; " + opening("a", "admin")),
    Case("operator", "select leave_tenant('{a}')", "= (2)", opening("a", "super") + "; " + opening("a", "admin")),
    Case("admin", "select leave_tenant('{a}')", "VS403"),
    Case("nobody", "select leave_tenant('{a}')", "VS401"),
]  # fmt: skip

CREATE = "select create_user('new@x.test'"
USERS = [
    Case("admin", f"{CREATE})", audit="user.created",
         then="exists (select from users u join user_token_wallets w on w.tenant_id = u.tenant_id and w.user_id = u.id"
              " where u.tenant_id = '{a}' and u.email = 'new@x.test' and w.level_id = '{level}')"),
    Case("service", f"{CREATE})"),
    Case("opened", f"{CREATE})"),
    Case("operator", f"{CREATE}, p_tenant_id => '{{a}}')"),
    Case("system", f"{CREATE}, p_tenant_id => '{{a}}')", "42501"),
    Case("user", f"{CREATE})", "VS403"),
    Case("nobody", f"{CREATE}, p_tenant_id => '{{a}}')", "VS401"),
    Case("admin", f"{CREATE}, p_tenant_id => '{{b}}')", "VS404"),
    Case("admin", f"{CREATE}, p_tenant_id => '{{a}}')"),
    Case("super", f"{CREATE}, p_tenant_id => '{{a}}')", "VS403"),
    Case("opened", f"{CREATE}, p_tenant_id => '{{b}}')", "VS404"),
    Case("platform service", f"{CREATE}, p_tenant_id => '{{a}}')", "VS404"),
    Case("operator", f"{CREATE}, p_tenant_id => '{{a}}')", "VS404", SUSPENDED),
    Case("admin", "select create_user('user@{word}.test')", "VS409"),
    Case("admin", "select create_user('no address')", "VS400"),
    Case("admin", f"{CREATE}, p_level_id => '{{b_level}}')", "VS404"),
    Case("admin", f"{CREATE}, p_level_id => '{{paid}}')"),
    Case("admin", f"{CREATE}, p_level_id => '{{paid}}')", "VS404",
         "update levels set status = 'retired' where tenant_id = '{a}' and id = '{paid}'"),
    Case("admin", f"{CREATE})", "VS404", "update levels set is_default = false where tenant_id = '{a}'"),
    Case("super", f"{CREATE}, 'superadmin')", given="update levels set is_default = false where tenant_id = '{platform}'"),
    Case("user", "select set_display_name('Me')", audit="user.display_name",
         then="(select display_name from users where tenant_id = '{a}' and id = '{user}') = 'Me'"),
    Case("nobody", "select set_display_name('Me')", "VS401"),
    Case("opened", "select set_display_name('Me')", "VS404"),
    Case("user", "select set_display_name(repeat('x', 300))", "VS400"),
    Case("admin", "select set_user_role('{other}', 'admin')", audit="user.role",
         then="(select role from users where tenant_id = '{a}' and id = '{other}') = 'admin'"),
    Case("admin", "select set_user_role('{other}', 'user')"),
    Case("user", "select set_user_role('{user}', 'admin')", "VS403"),
    Case("admin", "select set_user_role('{admin}', 'user')", "VS409", "update users set role = 'user' where tenant_id = '{a}' and id <> '{admin}'"),
    Case("admin", "select set_user_role('{admin}', 'user')", "VS409",
         "update users set role = 'user' where tenant_id = '{a}' and id <> '{admin}'; update users set role = 'admin', status = 'disabled' where tenant_id = '{a}' and id = '{other}'"),
    Case("admin", "select set_user_role('{admin}', 'user')", given="update users set role = 'admin' where tenant_id = '{a}' and id = '{other}'"),
    Case("admin", "select issue_one_time_token('{other}', sha256('link'))", "VS409", CLOSED),
    Case("admin", "select set_user_role('{b_user}', 'admin')", "VS404"),
    Case("admin", "select set_user_role('{other}', 'superadmin')", "VS400"),
    Case("admin", "select set_user_role('{other}', null)", "VS400"),
    Case("super", "select set_user_role('{super}', 'admin')", "VS400"),
    Case("operator", "select set_user_role('{other}', 'admin')", "VS404"),
    Case("admin", "select set_user_role('{other}', 'admin')", "VS404",
         "update users set status = 'deleted' where tenant_id = '{a}' and id = '{other}'"),
    Case("admin", "select set_user_status('{other}', 'disabled')", audit="user.status",
         then="(select status from users where tenant_id = '{a}' and id = '{other}') = 'disabled'"
              " and (select bool_and(revoked_at is not null) from sessions where tenant_id = '{a}' and user_id = '{other}')"
              " and exists (select from sessions where tenant_id = '{a}' and user_id = '{user}' and revoked_at is null)"),
    Case("admin", "select set_user_status('{other}', 'active')",
         then="exists (select from sessions where token_hash = {other_session} and revoked_at is null)"),
    Case("admin", "select set_user_status('{other}', 'disabled')",
         given=of("sessions", "revoked_at", "'2020-01-01'", "token_hash = {other_session}"),
         then="exists (select from sessions where token_hash = {other_session} and revoked_at = '2020-01-01')"),
    Case("admin", "select set_user_status('{admin}', 'disabled')", "VS409"),
    Case("admin", "select set_user_status('{other}', 'deleted')", "VS400"),
    Case("admin", "select set_user_status('{b_user}', 'disabled')", "VS404"),
    Case("admin", "select erase_user('{other}', 'why') ->> 'wallet'", "= (closed)", given=f"{LINK}; {SETTLED}; {THROTTLED}", audit="user.erased",
         then="(select status = 'deleted' and email is null and external_id is null and display_name = '' and password_hash is null"
              " from users where tenant_id = '{a}' and id = '{other}')"
              " and (select bool_and(revoked_at is not null and ip is null and user_agent is null) from sessions where tenant_id = '{a}' and user_id = '{other}')"
              " and exists (select from sessions where token_hash = {user_session} and revoked_at is null and ip is not null)"
              " and (select bool_and(revoked_at is not null and name = 'erased') from api_keys where tenant_id = '{a}' and user_id = '{other}')"
              " and exists (select from api_keys where key_hash = {user_key} and revoked_at is null and name <> 'erased')"
              " and not exists (select from one_time_tokens where tenant_id = '{a}' and user_id = '{other}' and used_at is null)"
              " and exists (select from one_time_tokens where tenant_id = '{a}' and user_id = '{user}' and used_at is null)"
              " and not exists (select from user_token_policies where tenant_id = '{a}' and user_id = '{other}')"
              " and not exists (select from sign_in_throttles where tenant_id = '{platform}' and failures = 77)"
              " and (select count(*) = 2 from sign_in_throttles where failures in (78, 79))"
              " and (select status = 'closed' and available_tokens = 0 and next_event_at = 'infinity' from user_token_wallets where tenant_id = '{a}' and user_id = '{other}')"
              " and (select status <> 'closed' from user_token_wallets where tenant_id = '{a}' and user_id = '{user}')"
              " and not exists (select from user_token_grants where tenant_id = '{a}' and user_id = '{other}' and (state in ('active', 'scheduled') or reason is not null))"
              " and exists (select from user_token_grants where tenant_id = '{a}' and user_id = '{user}' and state = 'active')"),
    *[Case("admin", f"select erase_user('{{other}}', 'why') ->> '{figure}'", f"= ({count})", given) for figure, count, given in (
        ("sessions", 1, ""), ("keys", 1, ""),
        ("sessions", 0, of("sessions", "revoked_at", "'2020-01-01'", "token_hash = {other_session}")),
        ("sessions", 0, of("sessions", "rotated_at", "'2020-01-01'", "token_hash = {other_session}")),
        ("sessions", 0, of("sessions", "refresh_expires_at", "vanilla.clock()", "token_hash = {other_session}")),
        ("keys", 0, of("api_keys", "revoked_at", "'2020-01-01'", "tenant_id = '{a}' and key_hash = {other_key}")),
        ("keys", 0, of("api_keys", "expires_at", "vanilla.clock()", "tenant_id = '{a}' and key_hash = {other_key}")))],
    # what was over before is not moved, and openings are super admins'
    Case("admin", "select erase_user('{other}', 'why') ->> 'user_id'", "= ({other})",
         of("sessions", "revoked_at", "'2020-01-01'", "token_hash = {other_session}") + "; "
         + of("api_keys", "revoked_at", "'2020-01-01'", "tenant_id = '{a}' and key_hash = {other_key}") + "; " + opening("a", "other"),
         then="exists (select from sessions where token_hash = {other_session} and revoked_at = '2020-01-01')"
              " and exists (select from api_keys where tenant_id = '{a}' and key_hash = {other_key} and revoked_at = '2020-01-01')"
              " and exists (select from tenant_openings where tenant_id = '{a}' and user_id = '{other}' and expires_at > vanilla.clock())"),
    Case("super", "select erase_user('{provider}', 'why') ->> 'user_id'", "= ({provider})",
         "insert into users (tenant_id, id, email, role) values ('{platform}', '{provider}', 'x@x.test', 'superadmin'); "
         + "; ".join((opening("a", "provider"), opening("b", "provider", "'2020-01-01'"), opening("a", "super"))) + "; select '{twin}'",
         then="not exists (select from tenant_openings where user_id = '{provider}' and expires_at > vanilla.clock())"
              " and exists (select from tenant_openings where user_id = '{provider}' and expires_at = '2020-01-01')"
              " and exists (select from tenant_openings where user_id = '{super}' and expires_at > vanilla.clock())"),
    Case("admin", "select erase_user('{user}', 'why') ->> 'wallet'", "= (suspended)",
         then="(select status = 'suspended' from user_token_wallets where tenant_id = '{a}' and user_id = '{user}')"),
    Case("operator", "select erase_user('{other}', 'why', '{a}') ->> 'user_id'", "= ({other})"),
    Case("opened", "select erase_user('{other}', 'why') ->> 'user_id'", "= ({other})", opening("a", "super")),
    Case("admin", "select erase_user('{other}', ' ')", "VS400"),
    Case("admin", "select erase_user('{admin}', 'why')", "VS409 nobody erases themselves"),
    Case("admin", "select erase_user('{other}', 'why')", "VS404",
         "update users set status = 'deleted' where tenant_id = '{a}' and id = '{other}'"),
    Case("admin", "select erase_user('{b_user}', 'why')", "VS404"),
    Case("user", "select erase_user('{other}', 'why')", "VS403"),
    Case("nobody", "select erase_user('{other}', 'why')", "VS401"),
    Case("user", "select vanilla.person_tenant('{user}')", "= ({a})"),
    Case("user", "select vanilla.person_tenant('{other}')", "VS403"),
    Case("user", "select vanilla.person_tenant('{user}', '{platform}')", "VS404"),
    Case("admin", "select vanilla.person_tenant('{other}')", "= ({a})"),
    Case("admin", "select vanilla.person_tenant('{b_user}')", "VS404"),
    Case("nobody", "select vanilla.person_tenant('{user}')", "VS401"),
    Case("user", "select start_person_export('{user}') -> 'tables' ? 'audit_logs'", "= (f)", audit="user.exported"),
    Case("admin", "select start_person_export('{other}') -> 'tables' ? 'audit_logs'", "= (t)", audit="user.exported"),
    Case("user", "select start_person_export('{other}')", "VS403"),
    Case("user", "select count(*) > 0 and bool_and(r::jsonb ->> 'user_id' = '{user}' and not r::jsonb ? 'token_hash')"
                 " from vanilla.platform_rows('{user}', '{a}', 'sessions') r", "= (t)"),
    Case("user", "select vanilla.platform_rows('{user}', '{a}', 'user_token_ledger')", "VS404"),
    Case("user", "select vanilla.platform_rows('{other}', '{a}', 'sessions')", "VS403"),
    Case("user", "select open_person_rows('{user}', '{a}', 'user_token_ledger')::text", "= (person_rows)"),
    Case("user", "select open_person_rows('{user}', '{a}', 'tenants')", "VS404"),
    Case("user", "select open_person_rows('{other}', '{a}', 'user_token_ledger')", "VS403"),
    Case("admin", "select open_person_rows('{b_user}', '{a}', 'user_token_ledger')", "VS404"),
    Case("admin", f"select set_user_password('{{other}}', '{NEW_HASH}')", given=LINK, audit="user.password_set",
         then="(select count(*) from sessions where tenant_id = '{a}' and user_id = '{other}' and revoked_at is null) = 0"
              " and exists (select from sessions where tenant_id = '{a}' and user_id = '{user}' and revoked_at is null)"
              " and (select used_at is not null from one_time_tokens where token_hash = sha256('link'))"
              " and exists (select from one_time_tokens where tenant_id = '{a}' and user_id = '{user}' and used_at is null)"),
    Case("admin", f"select set_user_password('{{other}}', '{NEW_HASH}')",
         given=of("sessions", "revoked_at", "'2020-01-01'", "token_hash = {other_session}") + f"; {LINK};"
         " update one_time_tokens set used_at = '2020-01-01' where token_hash = sha256('link')",
         then="exists (select from sessions where token_hash = {other_session} and revoked_at = '2020-01-01')"
              " and exists (select from one_time_tokens where token_hash = sha256('link') and used_at = '2020-01-01')"),
    Case("admin", "select set_user_password('{other}', 'plain')", "VS400"),
    Case("user", f"select set_user_password('{{user}}', '{NEW_HASH}')", "VS403"),
    Case("admin", "select issue_one_time_token('{other}', sha256('link'))", audit="user.password_link",
         then="exists (select from one_time_tokens where tenant_id = '{a}' and user_id = '{other}' and token_hash = sha256('link'))"),
    Case("admin", "select issue_one_time_token('{other}', 'short')", "VS400"),
    Case("admin", "select issue_one_time_token('{b_user}', sha256('link'))", "VS404"),
    Case("operator", "select vanilla.claim_super_admin() is not null", "= (t)", audit="user.claim_super_admin",
         then="exists (select from one_time_tokens where tenant_id = '{platform}' and user_id = '{super}' and purpose = 'claim_super_admin')"),
    Case("definer", "select vanilla.claim_super_admin()", "42501"),
    Case("keeper", "select vanilla.claim_super_admin()", "VS403"),
    Case("operator with a context", "select vanilla.claim_super_admin()", "VS403"),
    Case("operator", "select vanilla.claim_super_admin()", "VS404",
         "update users set status = 'disabled' where tenant_id = '{platform}'"),
]  # fmt: skip

EMAIL = "'{word}', 'user@{word}.test'"
FINISH = f"select vanilla.finish_sign_in({EMAIL}, sha256('t'), sha256('r'), 'ip', 'agent'"
BEGIN = f"select * from vanilla.begin_sign_in({EMAIL}, 'ip')"
ROTATE = "select vanilla.rotate_session({user_refresh}, sha256('t'), sha256('r')) ->> 'outcome'"
LOCKERS = "(select string_agg(xmax::text, ' ' order by id) from users where tenant_id = '{twin}')"
BEFORE = f"select set_config('test.lockers', {LOCKERS}, true)"
# a lock is written into the row that it is on: who locks another tenant's user makes them wait
UNLOCKED = f"{LOCKERS} = current_setting('test.lockers')"
THROTTLE = "insert into sign_in_throttles values ('{a}', sha256(%s), 1, vanilla.clock() + interval '1 hour')"
ADDRESS = "convert_to('email:{word}:user@{word}.test', 'UTF8')"
NOBODY = "convert_to('email:nobody:x@x.test', 'UTF8')"
PLACE = f"(select ctid::text from sign_in_throttles where tenant_id = '{{a}}' and subject_hash = sha256({NOBODY}))"
IP = "convert_to('ip:ip', 'UTF8')"
ENDED = {
    "revoked": of("sessions", "revoked_at", "vanilla.clock()"),
    "rotated": of("sessions", "rotated_at", "vanilla.clock()"),
    "expired": of("sessions", "expires_at", "vanilla.clock()"),
    "disabled": DISABLED,
    "suspended": SUSPENDED,
}
SIGN_IN = [
    Case("runtime", BEGIN, "= ($argon2id${word},0)"),
    *[Case("runtime", BEGIN, "= (,0)", given) for given in (DISABLED, SUSPENDED)],
    Case("runtime", f"select retry_after_s > 0 from vanilla.begin_sign_in({EMAIL}, 'ip')", "= (t)",
         f"select vanilla.begin_sign_in({EMAIL}, 'ip' || n) from generate_series(1, 10) n"),
    Case("runtime", f"select retry_after_s > 0 from vanilla.begin_sign_in({EMAIL}, 'ip')", "= (f)",
         f"select vanilla.begin_sign_in({EMAIL}, 'ip' || n) from generate_series(1, 9) n"),
    Case("runtime", f"{FINISH}) ->> 'user_id'", "= ({user})", audit="session.opened",
         then="exists (select from sessions where tenant_id = '{a}' and user_id = '{user}' and token_hash = sha256('t'))"
              " and (select last_sign_in_at > vanilla.clock() - interval '1 minute' from users where tenant_id = '{a}' and id = '{user}')"),
    *[Case("runtime", f"{FINISH})", "VS411", given) for given in (DISABLED, SUSPENDED)],
    Case("runtime", f"{FINISH}, p_verified_hash => '$argon2id$older')", "VS411"),
    Case("runtime", f"{FINISH}, p_verified_hash => '$argon2id${{word}}')"),
    Case("runtime", f"{FINISH})", given=f"{BEGIN}; {THROTTLE % ADDRESS}; {THROTTLE % IP}; {BEGIN.replace('user@', 'other@')}",
         then=f"(select count(*) from sign_in_throttles where tenant_id = '{{platform}}' and subject_hash = sha256({ADDRESS})) = 0"
              f" and (select count(*) from sign_in_throttles where tenant_id = '{{a}}' and subject_hash = sha256({ADDRESS})) = 1"
              f" and (select failures from sign_in_throttles where tenant_id = '{{platform}}' and subject_hash = sha256({IP})) = 1"
              f" and (select failures from sign_in_throttles where tenant_id = '{{a}}' and subject_hash = sha256({IP})) = 1"),
    Case("runtime", f"select vanilla.fail_sign_in({EMAIL})", audit="session.refused",
         then="(select bool_and(target_id = '{user}' and tenant_id = '{a}') from audit_logs where action = 'session.refused'"
              " and created_at = vanilla.clock())"),
    Case("runtime", "select vanilla.fail_sign_in('nobody', 'x@x.test')",
         given=THROTTLE % NOBODY + f"; select set_config('test.place', {PLACE}, true)", then=f"{PLACE} = current_setting('test.place')"),
    Case("runtime", "select vanilla.session_identity({user_session}) ->> 'email'", "= (user@{word}.test)"),
    *[Case("runtime", "select vanilla.session_identity({user_session})", "= ()", given) for given in ENDED.values()],
    Case("runtime", "select vanilla.session_identity({user_session}, '{a}') ->> 'user_id'", "= ({user})"),
    Case("runtime", "select vanilla.session_identity({user_session}, '{b}')", "= ()"),
    Case("runtime", "select vanilla.session_identity(sha256('ss'), '{a}')", "= ()", SUPER_SESSION),
    Case("runtime", "select vanilla.session_identity(sha256('ss'), '{a}') ->> 'tenant_id'", "= ({a})",
         f"{SUPER_SESSION}; {opening('a', 'super')}"),
    Case("runtime", "select vanilla.session_identity(sha256('ss'), '{a}')", "= ()", f"{SUPER_SESSION}; {opening('platform', 'super')}"),
    Case("runtime", "select vanilla.session_identity(sha256('ss'), '{a}')", "= ()", f"{SUPER_SESSION}; {opening('a', 'admin')}"),
    Case("runtime", "select vanilla.session_identity(sha256('ss'), '{a}')", "= ()",
         f"{SUPER_SESSION}; {opening('a', 'super', 'vanilla.clock()')}"),
    Case("runtime", "select vanilla.session_identity({admin_session}, '{platform}')", "= ()", opening("platform", "admin")),
    Case("runtime", ROTATE, "= (rotated)", BEFORE, then=UNLOCKED + " and exists (select from sessions where token_hash = {user_session}"
         " and rotated_at is not null) and exists (select from sessions where token_hash = {other_session} and rotated_at is null)"),
    *[Case("runtime", ROTATE, "= (unknown)", given) for given in (
        ENDED["revoked"], of("sessions", "refresh_expires_at", "vanilla.clock()"), DISABLED, SUSPENDED)],
    Case("runtime", ROTATE, "= (reused)", audit="session.reused",
         given="select vanilla.rotate_session({user_refresh}, sha256('t2'), sha256('r2'));"
               " update sessions set revoked_at = '2020-01-01', family_id = (select family_id from sessions where"
               " token_hash = {user_session}) where token_hash = {other_session}",
         then="not exists (select from sessions where tenant_id = '{a}' and revoked_at is null and family_id ="
              " (select family_id from sessions where token_hash = {user_session}))"
              " and exists (select from sessions where token_hash = {admin_session} and revoked_at is null)"
              " and exists (select from sessions where token_hash = {other_session} and revoked_at = '2020-01-01')"),
    Case("runtime", "select vanilla.rotate_session({user_refresh}, sha256('t'), sha256('r')) ->> 'must_change_password'", "= (true)",
         "update users set must_change_password = true where tenant_id = '{a}' and id = '{user}'"),
    Case("runtime", "select vanilla.close_session({user_session})", "= (t)", BEFORE, audit="session.closed",
         then=UNLOCKED + " and exists (select from sessions where token_hash = {user_session} and revoked_at is not null)"
              " and exists (select from sessions where token_hash = {other_session} and revoked_at is null)"),
    Case("runtime", "select vanilla.close_session({user_session})", "= (f)", ENDED["revoked"]),
    Case("runtime", "select vanilla.close_session(sha256('no'))", "= (f)"),
]  # fmt: skip

CHANGE = f"select vanilla.change_password({{user_session}}, '{NEW_HASH}')"
REDEEM = f"select vanilla.redeem_one_time_token(sha256('link'), '{NEW_HASH}') ->> 'email'"
REGISTER = "select vanilla.register_user('{word}', 'new@x.test', '%s', '')"
OPEN_DOOR = "update tenants set self_registration = true where id = '{a}'"
FORGOT = f"select vanilla.request_password_link({EMAIL}, 'ip', sha256('link'))"
SECOND = f"{FINISH})"
PASSWORD_THROTTLE = "convert_to('password:{user}', 'UTF8')"
PASSWORDS = [
    Case("runtime", "select password_hash, retry_after_s from vanilla.begin_password_change({user_session})", "= ($argon2id${word},0)"),
    *[Case("runtime", "select password_hash from vanilla.begin_password_change({user_session})", "= ()", ENDED[e])
      for e in ("revoked", "rotated", "expired", "disabled")],
    Case("runtime", CHANGE, "= (t)", given=f"{BEFORE}; {SECOND}; {THROTTLE % PASSWORD_THROTTLE};"
         " select vanilla.begin_password_change({user_session})", audit="user.password_changed",
         then=UNLOCKED + " and (select password_hash from users where tenant_id = '{a}' and id = '{user}') = '$argon2id$new'"
              " and (select revoked_at is not null from sessions where token_hash = sha256('t'))"
              " and (select revoked_at is null from sessions where token_hash = {user_session})"
              " and (select revoked_at is null from sessions where token_hash = {other_session})"
              f" and (select array_agg(tenant_id::text) = array['{{a}}'] from sign_in_throttles where subject_hash = sha256({PASSWORD_THROTTLE}))"),
    Case("runtime", CHANGE, "= (t)", given=f"{SECOND}; update sessions set revoked_at = '2020-01-01' where token_hash = sha256('t')",
         then="exists (select from sessions where token_hash = sha256('t') and revoked_at = '2020-01-01')"),
    *[Case("runtime", CHANGE, "= (f)", ENDED[e]) for e in ("revoked", "rotated", "expired")],
    Case("runtime", "select vanilla.change_password({user_session}, 'plain')", "VS400"),
    Case("runtime", FORGOT, "= (user@{word}.test)", audit="user.password_link",
         then="exists (select from one_time_tokens where tenant_id = '{a}' and user_id = '{user}' and token_hash = sha256('link'))"),
    *[Case("runtime", FORGOT, "= ()", given) for given in (DISABLED, SUSPENDED)],
    Case("runtime", FORGOT, "= ()", f"select vanilla.request_password_link({EMAIL}, 'ip', sha256(n::text::bytea)) from generate_series(1, 3) n"),
    Case("runtime", FORGOT.replace("sha256('link')", "'short'"), "VS400"),
    Case("runtime", "select vanilla.one_time_token_user(sha256('link')) ->> 'email'", "= (other@{word}.test)", LINK),
    Case("runtime", "select vanilla.one_time_token_user(sha256('link')) ->> 'tenant'", "= ({word})", LINK),
    *[Case("runtime", "select vanilla.one_time_token_user(sha256('link'))", "= ()", f"{LINK}; {given}") for given in (
        "update one_time_tokens set used_at = vanilla.clock() where token_hash = sha256('link')",
        "update one_time_tokens set expires_at = vanilla.clock() where token_hash = sha256('link')",
        "update users set status = 'disabled' where tenant_id = '{a}' and id = '{other}'")],
    Case("runtime", REDEEM, "= (other@{word}.test)", audit="user.password_changed",
         given=BEFORE + "; " + LINK + "; " + LINK.replace("'link'", "'more'") + "; " + SECOND.replace("user@", "other@"),
         then="(select password_hash from users where tenant_id = '{a}' and id = '{other}') = '$argon2id$new'"
              " and (select used_at is not null from one_time_tokens where token_hash = sha256('more'))"
              " and (select revoked_at is not null from sessions where token_hash = sha256('t'))"
              " and (select revoked_at is null from sessions where token_hash = {user_session})"
              f" and {UNLOCKED}"),
    Case("runtime", REDEEM.replace("'email'", "'tenant'"), "= ({word})", LINK),
    Case("runtime", REDEEM, given=LINK + "; " + of("sessions", "revoked_at", "'2020-01-01'", "token_hash = {other_session}"),
         then="exists (select from sessions where token_hash = {other_session} and revoked_at = '2020-01-01')"),
    *[Case("runtime", REDEEM, "VS411", f"{LINK}; {given}") for given in (
        "update one_time_tokens set used_at = vanilla.clock() where token_hash = sha256('link')",
        "update one_time_tokens set expires_at = vanilla.clock() where token_hash = sha256('link')",
        "update users set status = 'disabled' where tenant_id = '{a}' and id = '{other}'")],
    Case("runtime", "select vanilla.redeem_one_time_token(sha256('link'), 'plain')", "VS400", LINK),
    Case("runtime", "select vanilla.begin_registration('ip') > 0", "= (t)", "select vanilla.begin_registration('ip') from generate_series(1, 100)"),
    Case("runtime", REGISTER % NEW_HASH + " ->> 'tenant_id'", "= ({a})", OPEN_DOOR, audit="user.registered"),
    Case("runtime", REGISTER % NEW_HASH, "VS403"),
    Case("runtime", REGISTER % NEW_HASH, "VS403", f"{OPEN_DOOR}; {SUSPENDED}"),
    Case("runtime", REGISTER % "plain", "VS400", OPEN_DOOR),
]  # fmt: skip

KEY = "select create_api_key('n', 'p', sha256('k')"
KEYS = [
    Case("user", f"{KEY})", audit="api_key.created",
         then="exists (select from api_keys where tenant_id = '{a}' and user_id = '{user}' and key_hash = sha256('k'))"),
    Case("user", f"{KEY}, array['admin'])", "VS403"),
    Case("user", f"{KEY}, array['act_as'])", "VS403"),
    Case("user", f"{KEY}, p_user_id => '{{other}}')", "VS403"),
    Case("nobody", f"{KEY})", "VS401"),
    Case("admin", f"{KEY}, p_user_id => '{{other}}')"),
    Case("admin", f"{KEY}, array['act_as'])"),
    Case("admin", f"{KEY}, p_user_id => '{{b_user}}')", "VS404"),
    Case("admin", f"{KEY}, array['admin'], p_user_id => '{{other}}')", "VS400"),
    Case("admin", f"{KEY}, array['admin'])"),
    Case("user", f"{KEY}, p_tenant_id => '{{b}}')", "VS404"),
    Case("user", f"{KEY}, p_expires_at => vanilla.clock())", "VS400"),
    Case("user", f"{KEY}, array['odd'])", "VS400"),
    Case("user", "select revoke_api_key('{key_id}')", audit="api_key.revoked",
         then="(select revoked_at is not null from api_keys where key_hash = {user_key})"),
    Case("user", "select revoke_api_key('{admin_key_id}')", "VS404"),
    Case("admin", "select revoke_api_key('{key_id}')"),
    Case("admin", "select revoke_api_key('{b_key_id}')", "VS404"),
    Case("nobody", "select revoke_api_key('{key_id}')", "VS401"),
    Case("service", "select revoke_api_key('{key_id}')"),
    Case("user", "select revoke_api_key('{key_id}')", given=OF_ENGINE, then=RUN_ENDED),
    Case("admin", "select revoke_api_key('{key_id}')", given=OF_ENGINE, then=RUN_ENDED),
    Case("user", "select revoke_api_key('{key_id}', p_cancel_runs => false)", given=OF_ENGINE,
         then="(select finished_at is null from workflow_executions where tenant_id = '{a}' and id = '{running}')"),
    Case("user", "select revoke_api_key('{key_id}')", given=f"{OF_ENGINE}; update workflow_executions set status = 'cancelled', finished_at = '2020-01-01' where tenant_id = '{{a}}' and id = '{{running}}'",
         then="(select finished_at = '2020-01-01' from workflow_executions where tenant_id = '{a}' and id = '{running}')"),
    Case("runtime", "select vanilla.key_identity({user_key}) ->> 'email'", "= (user@{word}.test)"),
    Case("runtime", "select vanilla.key_identity({user_key}) ->> 'role'", "= (user)"),
    Case("runtime", "select vanilla.key_identity({admin_key}) ->> 'role'", "= (admin)"),
    Case("runtime", "select vanilla.key_identity({admin_key}) ->> 'role'", "= (user)",
         "update api_keys set scopes = '{{read}}' where key_hash = {admin_key}".replace("{{read}}", "{read}")),
    *[Case("runtime", "select vanilla.key_identity({user_key})", "= ()", given) for given in (
        of("api_keys", "revoked_at", "vanilla.clock()", "key_hash = {user_key}"),
        of("api_keys", "expires_at", "vanilla.clock()", "key_hash = {user_key}"), DISABLED, SUSPENDED)],
]  # fmt: skip

ANOTHER_KEY = "select vanilla.install_context_key('other', repeat('z', 32)::bytea)"
RETIRED = (
    "create temp table test_key as select repeat('r', 32)::bytea as k; grant select on test_key to public;"
    " delete from vanilla.context_keys where key_id = '{context_key}'; select vanilla.install_context_key('{context_key}', k) from test_key;"
    " update vanilla.context_keys set accept_until = now() where key_id = '{context_key}'"
)
UPGRADED = "insert into vanilla.schema_migrations (name, checksum) values ('012_second.sql', 'c')"
OWNERS = [
    Case("owner", "select vanilla.install_context_key('short', 'x')", "22023"),
    Case("owner", "select vanilla.install_context_key('{context_key}', repeat('y', 32)::bytea)", "23505"),
    Case("owner", "select vanilla.install_context_key('new', repeat('y', 32)::bytea)"),
    Case("owner", "select vanilla.install_context_key('{context_key}', (select k from test_key))", "VS409", RETIRED),
    Case("owner", "select vanilla.expire_context_key('no', now())", "VS404"),
    Case(
        "owner",
        "select vanilla.expire_context_key('{context_key}', now())",
        "VS409",
        "delete from vanilla.context_keys where key_id <> '{context_key}'",
    ),
    Case(
        "owner",
        "select vanilla.expire_context_key('{context_key}', '2020-01-01')",
        '= ("2020-01-01 00:00:00+00")',
        ANOTHER_KEY,
    ),
    Case("runtime", "select vanilla.ensure_partitions(25)", "VS400"),
    Case("runtime", "select vanilla.ensure_partitions(-1)", "VS400"),
    Case("owner", "select vanilla.protect_table('public.levels', 'odd')", "22023"),
    Case("owner", "select vanilla.refuse_after_upgrade()"),
    Case("owner", "select vanilla.refuse_after_upgrade()", "VS409", UPGRADED),
    *[Case("owner", f"select vanilla.begin_upgrade('{name}')", "22023") for name in ("010_late.sql", "011.sql", "011_A.sql", "x011_a.sql")],
    *[Case("owner", f"select vanilla.begin_upgrade('{name}')", "VS409", UPGRADED) for name in ("011_first.sql", "012_second.sql")],
    Case("owner", "select vanilla.begin_upgrade('013_third.sql')", given=UPGRADED,
         then="(select checksum = '' from vanilla.schema_migrations where name = '013_third.sql')"),
    Case("runtime", "select vanilla.schema_files() ->> '012_second.sql'", "= (c)", UPGRADED),
]  # fmt: skip

TWO_ADMINS = "update users set role = 'admin' where tenant_id = '{a}' and id = '{other}'"
# keys that may name who pays: of the one whose role changes and of another, here and in the twin; one was revoked before
ACT_AS = (
    "insert into api_keys (tenant_id, user_id, name, prefix, key_hash, scopes, revoked_at)"
    " select t::uuid, u::uuid, u, 'x', sha256(convert_to(t || u || coalesce(r::text, ''), 'UTF8')), '{act_as}', r"
    " from unnest(array['{a}', '{twin}']) t, unnest(array['{user}', '{other}']) u,"
    " unnest(array[null, '2020-01-01'::timestamptz]) r"
)
REVOKED = "(select count(*) from api_keys where tenant_id = '{a}' and scopes = '{act_as}' and revoked_at > '2020-01-02'"
MEMBERS = [
    Case("admin", "select set_user_role('{other}', 'user')", given=f"{TWO_ADMINS}; {ACT_AS}",
         then=f"{REVOKED}) = 1 and {REVOKED} and user_id = '{{other}}') = 1"),
    Case("admin", "select set_user_role('{other}', 'user')", given=ACT_AS, then=f"{REVOKED}) = 0"),
    Case("admin", "select set_user_status('{admin}', 'disabled')", "VS409", TWO_ADMINS),
    Case("user", "select set_display_name('Me')", "VS404",
         "update users set status = 'deleted', email = null, external_id = null where tenant_id = '{a}' and id = '{user}'"),
    Case("admin", "select issue_one_time_token('{other}', sha256('link'))", "VS409",
         "insert into one_time_tokens (tenant_id, user_id, purpose, token_hash, expires_at)"
         " values ('{a}', '{user}', 'set_password', sha256('link'), '2199-01-01')"),
    Case("admin", "select create_api_key('n', 'p', {user_key})", "VS409"),
]  # fmt: skip

CASES = [*OWNERS, *CONTEXT, *TENANTS, *USERS, *MEMBERS, *SIGN_IN, *PASSWORDS, *KEYS]
