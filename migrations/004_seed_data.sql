-- 004: seed data. Fixed ids and "on conflict do nothing": run it again and nothing changes.
begin;
set local client_min_messages = warning;
select pg_advisory_xact_lock(hashtext('vanilla_saas.migrate'));
select vanilla.refuse_after_upgrade();
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

-- facts of genai-prices 0.2.3, micros of USD per million tokens; `vanilla-saas models sync` refreshes them
insert into public.ai_models (tenant_id, id, provider_tenant_id, provider_id, slug, upstream_model, name, context_window,
                              input_price, output_price, cached_input_price, price_source, created_at)
select '00000000-0000-0000-0000-000000000000', ('00000000-0000-7000-8000-00000000' || m.id)::uuid, '00000000-0000-0000-0000-000000000000',
       ('00000000-0000-7000-8000-000000000' || m.provider)::uuid, m.slug, m.slug, m.name, m.context_window,
       m.input_price, m.output_price, m.cached_input_price, 'genai-prices 0.2.3', '2026-01-01+00'
from (values
    ('301', '5101', 'gpt-6.1-sol', 'GPT-6.1 Sol', 1050000, 4000000, 15000000, 200000),
    ('301', '5102', 'gpt-6.1-terra', 'GPT-6.1 Terra', 1050000, 2000000, 7500000, 100000),
    ('301', '5103', 'gpt-6-astra', 'GPT-6 Astra', 1050000, 20000000, 75000000, 2000000),
    ('301', '5104', 'gpt-6-sol', 'GPT-6 Sol', 1050000, 4000000, 15000000, 400000),
    ('301', '5105', 'gpt-6-luna', 'GPT-6 Luna', 1050000, 200000, 750000, 20000),
    ('301', '5106', 'gpt-5.6-sol', 'GPT-5.6 Sol', 1050000, 8000000, 30000000, 800000),
    ('301', '5107', 'gpt-5.6-terra', 'GPT-5.6 Terra', 1050000, 4000000, 18000000, 400000),
    ('301', '5108', 'gpt-5.6-luna', 'GPT-5.6 Luna', 1050000, 400000, 1800000, 40000),
    ('301', '5109', 'gpt-5.4-mini', 'GPT-5.4 mini', 400000, 750000, 4500000, 75000),
    ('301', '5110', 'gpt-5-mini', 'GPT-5 mini', 400000, 250000, 2000000, 25000),
    ('301', '5111', 'gpt-4.1', 'gpt 4.1', 1000000, 2000000, 8000000, 500000),
    ('301', '5112', 'gpt-4o-mini', 'gpt 4o mini', 128000, 150000, 600000, 75000),
    ('302', '5201', 'claude-fable-5-2', 'Claude Fable 5.2', 1000000, 8000000, 40000000, 200000),
    ('302', '5202', 'claude-opus-5-5', 'Claude Opus 5.5', 1000000, 4000000, 20000000, 200000),
    ('302', '5203', 'claude-opus-5', 'Claude Opus 5', 1000000, 5000000, 25000000, 500000),
    ('302', '5204', 'claude-opus-4-8', 'Claude Opus 4.8', 1000000, 5000000, 25000000, 500000),
    ('302', '5205', 'claude-sonnet-5-5', 'Claude Sonnet 5.5', 1000000, 2000000, 10000000, 100000),
    ('302', '5206', 'claude-sonnet-5', 'Claude Sonnet 5', 1000000, 2000000, 10000000, 200000),
    ('302', '5207', 'claude-sonnet-4-6', 'Claude Sonnet 4.6', 1000000, 3000000, 15000000, 300000),
    ('302', '5208', 'claude-haiku-5-5', 'Claude Haiku 5.5', 1000000, 500000, 2500000, 50000),
    ('302', '5209', 'claude-haiku-4-5', 'Claude Haiku 4.5', 200000, 1000000, 5000000, 100000),
    ('303', '5301', 'gemini-4-argon', 'Gemini 4 Argon', 1048576, 4000000, 20000000, 200000),
    ('303', '5302', 'gemini-3.8-flash', 'Gemini 3.8 Flash', 1000000, 1500000, 7500000, 150000),
    ('303', '5303', 'gemini-3.7-flash', 'Gemini 3.7 Flash', 1000000, 1500000, 7500000, 150000),
    ('303', '5304', 'gemini-3.6-flash', 'Gemini 3.6 Flash', 1000000, 1500000, 7500000, 150000),
    ('303', '5305', 'gemini-3.5-flash', 'Gemini 3.5 Flash', 1000000, 1500000, 9000000, 150000),
    ('303', '5306', 'gemini-3.5-flash-lite', 'Gemini 3.5 Flash Lite', 1000000, 300000, 2500000, 30000),
    ('303', '5307', 'gemini-3.1-pro-preview', 'Gemini 3.1 Pro Preview', null, 4000000, 18000000, 400000),
    ('303', '5308', 'gemini-3.1-flash-lite', 'Gemini 3.1 Flash Lite', 1000000, 250000, 1500000, 25000),
    ('303', '5309', 'gemini-2.5-pro', 'Gemini 2.5 Pro', null, 2500000, 15000000, 250000),
    ('303', '5310', 'gemini-2.5-flash', 'Gemini 2.5 Flash', 1048576, 300000, 2500000, 30000),
    ('303', '5311', 'gemini-2.5-flash-lite', 'Gemini 2.5 Flash Lite', 1000000, 100000, 400000, 10000)
    ) m (provider, id, slug, name, context_window, input_price, output_price, cached_input_price)
on conflict do nothing;

-- what embeddings cost is what goes in
insert into public.ai_models (tenant_id, id, provider_tenant_id, provider_id, slug, upstream_model, name, kind, context_window,
                              input_price, output_price, cached_input_price, price_source, created_at)
select '00000000-0000-0000-0000-000000000000', ('00000000-0000-7000-8000-00000000' || m.id)::uuid, '00000000-0000-0000-0000-000000000000',
       ('00000000-0000-7000-8000-000000000' || m.provider)::uuid, m.slug, m.slug, m.name, 'embedding', m.context_window,
       m.input_price, 0, m.input_price, m.price_source, '2026-01-01+00'
from (values
    ('304', '0403', 'sandbox-embed', 'Sandbox embed', 128000, 20000, 'sandbox'),
    ('301', '5151', 'text-embedding-3-large', 'text embedding 3', 8192, 130000, 'genai-prices 0.2.3'),
    ('301', '5152', 'text-embedding-3-small', 'text embedding 3', 8192, 20000, 'genai-prices 0.2.3'),
    ('303', '5351', 'gemini-embedding-2', 'Gemini Embedding 2', 8192, 200000, 'genai-prices 0.2.3'),
    ('303', '5352', 'gemini-embedding-001', 'gemini-embedding-001', null, 150000, 'genai-prices 0.2.3')
    ) m (provider, id, slug, name, context_window, input_price, price_source)
on conflict do nothing;

insert into public.system_configurations (tenant_id, key, value, description, updated_at) values
    ('00000000-0000-0000-0000-000000000000', 'gateway.min_output_tokens', '16',
     'The least output, in tokens a choice, to which a call without max_tokens is clamped; a wallet that affords less refuses.', '2026-01-01+00'),
    ('00000000-0000-0000-0000-000000000000', 'retention.ai_executions_days', '90', 'Days that executions are kept.', '2026-01-01+00'),
    ('00000000-0000-0000-0000-000000000000', 'retention.audit_logs_days', '365', 'Days that the audit log is kept; at least 365.', '2026-01-01+00'),
    ('00000000-0000-0000-0000-000000000000', 'retention.events_days', '365', 'Days that events are kept.', '2026-01-01+00'),
    ('00000000-0000-0000-0000-000000000000', 'retention.webhook_deliveries_days', '30', 'Days that closed webhook deliveries are kept.', '2026-01-01+00'),
    ('00000000-0000-0000-0000-000000000000', 'retention.sign_ins_days', '30', 'Days that sessions and links are kept after their end.', '2026-01-01+00'),
    ('00000000-0000-0000-0000-000000000000', 'tenants.grace_days', '30', 'Days after its closing in which a tenant can be opened again; then it is erased.', '2026-01-01+00'),
    ('00000000-0000-0000-0000-000000000000', 'retention.whole_months', 'false',
     'true: logs leave in whole months alone, up to a month later than their days, and no row is deleted.', '2026-01-01+00'),
    ('00000000-0000-0000-0000-000000000000', 'retention.export', 'false',
     'true: no month of a log is dropped before the job log_export has written it to VANILLA_SAAS_EXPORT_TO.', '2026-01-01+00')
on conflict do nothing;

-- all of them are due at the first tick of a fresh database
insert into public.schedules (tenant_id, name, description, kind, period, slots_from, next_run_at, longest_gap, enabled)
select '00000000-0000-0000-0000-000000000000', s.name, s.description, s.kind, s.period::interval, s.slots_from::timestamptz, s.slots_from::timestamptz, s.longest_gap::interval,
    s.name not like 'backup%'      -- where they go, and whether a disk has room, is for the operator to say: schedules resume backup
from (values
    ('monthly_reset', 'Closes periods of wallets that have ended, each at midnight in its tenant''s time zone.', 'sql', '30 s', '2026-01-01 00:00+00', null),
    ('grants', 'Begins and ends grants of tokens.', 'sql', '30 s', '2026-01-01 00:00+00', null),
    ('holds', 'Returns tokens of holds that have expired.', 'sql', '30 s', '2026-01-01 00:00+00', null),
    ('partitions', 'Makes the months of log tables, three ahead.', 'sql', '1 hour', '2026-01-01 00:00+00', null),
    ('log_export', 'Writes months of logs that are past retention to files, where retention.export is on.', 'python', '1 day', '2026-01-01 02:15+00', null),
    ('retention', 'Drops months of logs that are past retention and deletes the rows of broken ones.', 'sql', '1 day', '2026-01-01 03:15+00', '1 day'),
    ('webhook_deliveries', 'Forgets webhook deliveries past retention.', 'sql', '1 hour', '2026-01-01 00:20+00', null),
    ('sign_ins', 'Forgets ended sessions, links and throttles.', 'sql', '1 hour', '2026-01-01 00:40+00', null),
    ('closings', 'Closes wallets of erased persons whose calls have settled; erases tenants whose grace is over.', 'sql', '30 s', '2026-01-01 00:00+00', '1 day'),
    ('backup', 'Makes a backup into the configured folder and keeps the newest.', 'python', '1 day', '2026-01-01 01:10+00', null),
    ('backup_rehearsal', 'Restores the newest backup for trial and proves it.', 'python', '7 days', '2026-01-04 04:10+00', null)
    ) s (name, description, kind, period, slots_from, longest_gap)
on conflict do nothing;
commit;
