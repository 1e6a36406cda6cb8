-- 004: seed data. Fixed ids and "on conflict do nothing": run it again and nothing changes.
begin;
set local client_min_messages = warning;
select pg_advisory_xact_lock(hashtext('vanilla_saas.migrate'));
set local role vanilla_system;      -- FORCE binds the owner too
insert into public.tenants (tenant_id, id, slug, name, self_registration, created_at) values
    ('00000000-0000-0000-0000-000000000000', '00000000-0000-0000-0000-000000000000', 'platform', 'Platform', false, '2026-01-01+00'),
    ('00000000-0000-7000-8000-000000000001', '00000000-0000-7000-8000-000000000001', 'default', 'Default', true, '2026-01-01+00')
on conflict do nothing;

-- levels of the platform are the template of new tenants; those of the default tenant are in use from the first day
insert into public.levels (tenant_id, id, slug, name, description, tier, is_default, created_at)
select t.id, (t.level_prefix || l.suffix)::uuid, l.slug, l.name, l.description, l.tier, l.is_default, '2026-01-01+00'
from (values ('00000000-0000-0000-0000-000000000000'::uuid, '00000000-0000-7000-8000-0000000001'),
             ('00000000-0000-7000-8000-000000000001'::uuid, '00000000-0000-7000-8001-0000000001')) t (id, level_prefix),
     (values ('01', 'free', 'Free', 'To try it out.', 0, true),
             ('02', 'basic', 'Basic', 'For one person.', 1, false),
             ('03', 'premium', 'Premium', 'For daily work.', 2, false),
             ('04', 'enterprise', 'Enterprise', 'For a company.', 3, false)) l (suffix, slug, name, description, tier, is_default)
on conflict do nothing;

-- tokens once on joining, tokens a month, share of the unused that rolls over, its cap, enforcement
insert into public.level_token_policies (tenant_id, id, level_id, base_allocation, monthly_allocation, rollover_percent, rollover_cap, enforcement_mode)
select v.tenant_id, ('00000000-0000-7000-8' || substr(v.id::text, 21, 3) || '-0000000002' || right(v.id::text, 2))::uuid, v.id,
       p.base_allocation, p.monthly_allocation, p.rollover_percent, p.rollover_cap, p.enforcement_mode
from public.levels v
join (values ('free', 5000, 10000, 0, null::bigint, 'hard'),
             ('basic', 0, 200000, 25, 50000, 'hard'),
             ('premium', 0, 2000000, 50, 1000000, 'hard'),
             ('enterprise', 0, 20000000, 100, 20000000, 'warn')) p (slug, base_allocation, monthly_allocation, rollover_percent, rollover_cap, enforcement_mode)
    on p.slug = v.slug
where v.tenant_id in ('00000000-0000-0000-0000-000000000000', '00000000-0000-7000-8000-000000000001') and v.id::text like '00000000-0000-7000-800_-0000000001%'
on conflict do nothing;

-- no usable password: `up` sets a random one, `select vanilla.claim_super_admin()` gives a token that sets it
insert into public.users (tenant_id, id, email, display_name, role, must_change_password, created_at) values
    ('00000000-0000-0000-0000-000000000000', '00000000-0000-7000-8000-0000000000aa', 'admin@localhost', 'Super admin', 'superadmin', true, '2026-01-01+00')
on conflict do nothing;
insert into public.user_token_wallets (tenant_id, user_id, anchor_at) values
    ('00000000-0000-0000-0000-000000000000', '00000000-0000-7000-8000-0000000000aa', '2026-01-01+00')
on conflict do nothing;

insert into public.ai_providers (tenant_id, id, slug, name, kind, base_url, created_at) values
    ('00000000-0000-0000-0000-000000000000', '00000000-0000-7000-8000-000000000301', 'openai', 'OpenAI', 'openai', 'https://api.openai.com/v1', '2026-01-01+00'),
    ('00000000-0000-0000-0000-000000000000', '00000000-0000-7000-8000-000000000302', 'anthropic', 'Anthropic', 'anthropic', 'https://api.anthropic.com/v1', '2026-01-01+00'),
    ('00000000-0000-0000-0000-000000000000', '00000000-0000-7000-8000-000000000303', 'google', 'Google', 'google', 'https://generativelanguage.googleapis.com/v1beta/openai', '2026-01-01+00'),
    ('00000000-0000-0000-0000-000000000000', '00000000-0000-7000-8000-000000000304', 'sandbox', 'Sandbox', 'sandbox', null, '2026-01-01+00')
on conflict do nothing;

insert into public.ai_models (tenant_id, id, provider_tenant_id, provider_id, slug, upstream_model, name, context_window, max_output_tokens,
                              input_price, output_price, cached_input_price, price_source, created_at)
select '00000000-0000-0000-0000-000000000000', m.id, '00000000-0000-0000-0000-000000000000', '00000000-0000-7000-8000-000000000304',
       m.slug, m.slug, m.name, 128000, 8192, m.input_price, m.output_price, m.input_price, 'sandbox', '2026-01-01+00'
from (values ('00000000-0000-7000-8000-000000000401'::uuid, 'sandbox-small', 'Sandbox small', 100000, 400000),
             ('00000000-0000-7000-8000-000000000402'::uuid, 'sandbox-large', 'Sandbox large', 1000000, 4000000)) m (id, slug, name, input_price, output_price)
on conflict do nothing;
commit;
