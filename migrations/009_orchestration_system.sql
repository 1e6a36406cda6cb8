-- 009: agents that talk: channels that lose nothing, agreements that are kept (docs/design/orchestration.md).
--
-- Tables:  protocol_agreements, agreement_parties, agreement_versions, agreement_acceptances, agreement_violations
--          communication_channels, channel_participants, channel_messages, channel_dead_letters
-- Public:  channel_open, _send, _receive, _ack, _nack, _floor, _close, _history, _read; my_channels
--          agreement_propose, _respond, _amend, _withdraw, _suspend, _resume, _terminate, _read; my_agreements
-- Private: schema_problem    why a JSON Schema is not one that SQL enforces whole
--          schema_misfit     where a value does not fit such a schema
--          agreement_breach  which rule of an agreement a message breaks
-- Others:  forget_channels   erase_person of 001 calls it
--          job_channels      a job
--
-- Invariants: messages of a channel count from 1 without gaps, in the order in which they committed; the same sender and
-- message_id are one message; a participant's cursor never goes back, and one worker at a time moves it; a closed channel
-- takes nothing; at most one participant has the floor. What an agreement says never changes, a version is active only when
-- every party accepted its hash, and no message of a bound channel is there that broke a rule of the version then active.
-- Lock order: the user, the channel, a participant, the agreement, its versions. Who writes to a channel holds its row until
-- the commit, so that whoever sees a message sees all before it.
begin;
set local client_min_messages = warning;
select pg_advisory_xact_lock(hashtext('vanilla_saas.migrate'));
select vanilla.refuse_after_upgrade();
set local role vanilla_owner;
grant create on schema vanilla to vanilla_definer;
reset role;
grant create on schema public to vanilla_definer;
set local role vanilla_owner;

-- Agreements: tables -----------------------------------------------------------------------------------------------
create table if not exists public.protocol_agreements (
    tenant_id uuid not null,
    id uuid not null default vanilla.uuid7(),
    user_id uuid not null,
    name text not null,
    status text not null default 'proposed',
    version integer,
    open_version integer,
    expires_at timestamptz not null default 'infinity',
    violations integer not null default 0,
    suspended_by text,
    reason text,
    created_at timestamptz not null,
    updated_at timestamptz not null,
    constraint protocol_agreements_pkey primary key (tenant_id, id),
    constraint protocol_agreements_user_fkey foreign key (tenant_id, user_id) references public.users (tenant_id, id),
    constraint protocol_agreements_name_check check (name <> '' and octet_length(name) <= 800),
    constraint protocol_agreements_status_check check (status in ('proposed', 'active', 'suspended', 'rejected', 'withdrawn', 'terminated', 'expired')),
    constraint protocol_agreements_version_check check (case when status in ('active', 'suspended') then version is not null and version > 0
        when status in ('proposed', 'rejected', 'withdrawn') then version is null else true end),
    constraint protocol_agreements_open_check check (case when status = 'proposed' then open_version is not null and open_version > 0
        when status in ('rejected', 'withdrawn', 'terminated', 'expired') then open_version is null else true end),
    constraint protocol_agreements_violations_check check (violations >= 0),
    constraint protocol_agreements_suspended_check check (suspended_by is null or status = 'suspended'),
    constraint protocol_agreements_reason_check check (octet_length(reason) <= 2000)
);
create index if not exists protocol_agreements_user_idx on public.protocol_agreements (tenant_id, user_id);
comment on table public.protocol_agreements is 'What parties have agreed on: which messages, by whom, in reply to what, until when. Its text stands in agreement_versions.';
comment on column public.protocol_agreements.user_id is 'Who proposed it first.';
comment on column public.protocol_agreements.version is 'The version that binds; null before there is one.';
comment on column public.protocol_agreements.open_version is 'The version that not all parties have answered.';
comment on column public.protocol_agreements.violations is 'Messages that broke it since it began or was resumed; the full count is the rows of agreement_violations.';
comment on column public.protocol_agreements.suspended_by is 'The party that suspended it; null: too many violations, or an admin.';

create or replace function vanilla.keep_agreement() returns trigger
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
begin
    if new.status <> old.status and not coalesce(new.status = any (case old.status
            when 'proposed' then '{active,rejected,withdrawn,expired,terminated}'
            when 'active' then '{suspended,terminated,expired}'
            when 'suspended' then '{active,terminated,expired}' end::text[]), false)
       or new.version < old.version then
        raise exception 'an agreement that is % does not become %', old.status, new.status using errcode = 'VS409';
    end if;
    return new;
end
$f$;
comment on function vanilla.keep_agreement() is 'Trigger: an agreement changes its status as docs/design/orchestration.md draws it, and never goes back to an earlier version.';
create or replace trigger protocol_agreements_states before update on public.protocol_agreements
    for each row execute function vanilla.keep_agreement();

create table if not exists public.agreement_parties (
    tenant_id uuid not null,
    agreement_id uuid not null,
    party text not null,
    user_id uuid not null,
    constraint agreement_parties_pkey primary key (tenant_id, agreement_id, party),
    constraint agreement_parties_agreement_fkey foreign key (tenant_id, agreement_id) references public.protocol_agreements (tenant_id, id),
    constraint agreement_parties_user_fkey foreign key (tenant_id, user_id) references public.users (tenant_id, id),
    constraint agreement_parties_party_check check (party ~ '^[a-z][a-z0-9_]{0,62}$')
);
create index if not exists agreement_parties_user_idx on public.agreement_parties (tenant_id, user_id);
comment on table public.agreement_parties is 'Who agrees: a role by name, and the user who answers for it.';

create table if not exists public.agreement_versions (
    tenant_id uuid not null,
    agreement_id uuid not null,
    version integer not null,
    terms jsonb not null,
    hash bytea not null,
    state text not null default 'proposed',
    proposed_by text not null,
    user_id uuid not null,
    proposed_at timestamptz not null,
    decided_at timestamptz,
    constraint agreement_versions_pkey primary key (tenant_id, agreement_id, version),
    constraint agreement_versions_party_fkey foreign key (tenant_id, agreement_id, proposed_by) references public.agreement_parties (tenant_id, agreement_id, party),
    constraint agreement_versions_version_check check (version > 0),
    constraint agreement_versions_hash_check check (hash = sha256(convert_to(terms::text, 'UTF8'))),
    constraint agreement_versions_state_check check (state in ('proposed', 'countered', 'rejected', 'withdrawn', 'expired', 'active', 'superseded')),
    constraint agreement_versions_decided_check check ((state = 'proposed') = (decided_at is null))
);
create index if not exists agreement_versions_user_idx on public.agreement_versions (tenant_id, user_id);
create index if not exists agreement_versions_party_idx on public.agreement_versions (tenant_id, agreement_id, proposed_by);
comment on table public.agreement_versions is 'What was proposed, immutable: acts, price, sla, data, gate, limits, parties and end.';
comment on column public.agreement_versions.terms is 'All that it says, with the parties and expires_at; acts as docs/orchestration.md describes them.';
comment on column public.agreement_versions.hash is 'SHA-256 of the terms'' text as PostgreSQL prints jsonb, in UTF-8: what a party accepts.';

create table if not exists public.agreement_acceptances (
    tenant_id uuid not null,
    agreement_id uuid not null,
    version integer not null,
    party text not null,
    user_id uuid not null,
    hash bytea not null,
    accepted_at timestamptz not null,
    constraint agreement_acceptances_pkey primary key (tenant_id, agreement_id, version, party),
    constraint agreement_acceptances_version_fkey foreign key (tenant_id, agreement_id, version)
        references public.agreement_versions (tenant_id, agreement_id, version),
    constraint agreement_acceptances_party_fkey foreign key (tenant_id, agreement_id, party)
        references public.agreement_parties (tenant_id, agreement_id, party)
);
create index if not exists agreement_acceptances_party_idx on public.agreement_acceptances (tenant_id, agreement_id, party);
create index if not exists agreement_acceptances_user_idx on public.agreement_acceptances (tenant_id, user_id);
comment on table public.agreement_acceptances is 'Which party accepted which hash, and when. Who proposes a version accepts it.';

create or replace function vanilla.keep_agreement_version() returns trigger
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
begin
    if (old.tenant_id, old.agreement_id, old.version, old.terms::text, old.hash, old.proposed_by, old.user_id, old.proposed_at)
            is distinct from (new.tenant_id, new.agreement_id, new.version, new.terms::text, new.hash, new.proposed_by, new.user_id, new.proposed_at) then
        raise exception 'what was proposed does not change' using errcode = 'VS409', hint = 'Counter or amend it.';
    elsif new.state <> old.state and old.state <> 'proposed' and not (old.state = 'active' and new.state = 'superseded') then
        raise exception 'a version that is % does not become %', old.state, new.state using errcode = 'VS409';
    elsif new.state = 'active' and old.state = 'proposed' and exists (
            select from public.agreement_parties p where p.tenant_id = new.tenant_id and p.agreement_id = new.agreement_id and not exists (
                select from public.agreement_acceptances a where a.tenant_id = p.tenant_id and a.agreement_id = p.agreement_id and a.version = new.version
                    and a.party = p.party and a.hash = new.hash)) then
        raise exception 'not every party has accepted this version' using errcode = 'VS409';
    end if;
    return new;
end
$f$;
comment on function vanilla.keep_agreement_version() is 'Trigger: terms never change, and a version is active only when every party has accepted its hash.';
create or replace trigger agreement_versions_immutable before update on public.agreement_versions
    for each row execute function vanilla.keep_agreement_version();

create table if not exists public.agreement_violations (
    tenant_id uuid not null,
    id uuid not null default vanilla.uuid7(),
    agreement_id uuid not null,
    version integer not null,
    channel_id uuid not null,
    participant_id uuid not null,
    party text,
    user_id uuid not null,
    performative text not null,
    rule text not null,
    path text not null default '',
    message text not null,
    created_at timestamptz not null,
    constraint agreement_violations_pkey primary key (tenant_id, id),
    constraint agreement_violations_version_fkey foreign key (tenant_id, agreement_id, version)
        references public.agreement_versions (tenant_id, agreement_id, version),
    constraint agreement_violations_rule_check check (rule in ('performative', 'sender', 'reply', 'conversation', 'deadline', 'limit', 'schema'))
);
create index if not exists agreement_violations_agreement_idx on public.agreement_violations (tenant_id, agreement_id, version, created_at);
create index if not exists agreement_violations_user_idx on public.agreement_violations (tenant_id, user_id);
comment on table public.agreement_violations is 'Messages that were refused because they broke an agreement: who, which rule, where. Never what the message said.';
comment on column public.agreement_violations.path is 'JSON pointer into the message''s body, of a breach of the rule schema.';

-- Channels: tables -------------------------------------------------------------------------------------------------
create table if not exists public.communication_channels (
    tenant_id uuid not null,
    id uuid not null default vanilla.uuid7(),
    user_id uuid not null,
    name text not null,
    kind text not null,
    status text not null default 'open',
    agreement_id uuid,
    last_seq bigint not null default 0,
    max_messages bigint,
    max_attempts smallint not null default 5,
    open_conversations integer not null default 0,
    floor_policy text,
    floor_holder uuid,
    floor_s integer not null default 300,
    floor_until timestamptz,
    told_at timestamptz not null default '-infinity',
    created_at timestamptz not null,
    closed_at timestamptz,
    close_reason text,
    constraint communication_channels_pkey primary key (tenant_id, id),
    constraint communication_channels_user_fkey foreign key (tenant_id, user_id) references public.users (tenant_id, id),
    constraint communication_channels_agreement_fkey foreign key (tenant_id, agreement_id) references public.protocol_agreements (tenant_id, id),
    constraint communication_channels_name_check check (name <> '' and octet_length(name) <= 800),
    constraint communication_channels_kind_check check (kind in ('direct', 'group', 'topic')),
    constraint communication_channels_status_check check (status in ('open', 'closed')),
    constraint communication_channels_closed_check check ((status = 'closed') = (closed_at is not null)),
    constraint communication_channels_figures_check check (last_seq >= 0 and max_messages > 0 and last_seq <= max_messages and open_conversations >= 0),
    constraint communication_channels_attempts_check check (max_attempts between 1 and 100),
    constraint communication_channels_policy_check check (floor_policy is null or floor_policy in ('round_robin', 'manager', 'bid') and kind = 'group'),
    constraint communication_channels_floor_check check (floor_s between 1 and 86400 and (floor_holder is null) = (floor_until is null)
        and (floor_holder is null or floor_policy is not null)),
    constraint communication_channels_reason_check check (octet_length(close_reason) <= 2000)
) with (fillfactor = 50);
-- nothing that a message changes is indexed, so that each is a HOT update
create index if not exists communication_channels_user_idx on public.communication_channels (tenant_id, user_id);
create index if not exists communication_channels_agreement_idx on public.communication_channels (tenant_id, agreement_id);
comment on table public.communication_channels is 'Channels: logs that participants write to and read from, in one order for all. Its row is the counter.';
comment on column public.communication_channels.kind is 'direct: two participants; group: any number, by turns with a floor_policy; topic: publishers and subscribers.';
comment on column public.communication_channels.open_conversations is 'Conversations of a bound channel that no act has ended.';
comment on column public.communication_channels.floor_until is 'When the floor may be taken from its holder.';
comment on column public.communication_channels.told_at is 'When waiting participants were last told that there is something to read.';

create table if not exists public.channel_participants (
    tenant_id uuid not null,
    id uuid not null default vanilla.uuid7(),
    channel_id uuid not null,
    place smallint not null,
    name text not null,
    kind text not null,
    user_id uuid not null,
    party text,
    reads boolean not null default true,
    manages boolean not null default false,
    bid numeric,
    cursor_seq bigint not null default 0,
    attempts smallint not null default 0,
    lease_token uuid,
    lease_until timestamptz,
    lease_seq bigint,
    last_error text,
    constraint channel_participants_pkey primary key (tenant_id, id),
    constraint channel_participants_place_key unique (tenant_id, channel_id, place),
    constraint channel_participants_name_key unique (tenant_id, channel_id, name),
    constraint channel_participants_channel_fkey foreign key (tenant_id, channel_id) references public.communication_channels (tenant_id, id),
    constraint channel_participants_user_fkey foreign key (tenant_id, user_id) references public.users (tenant_id, id),
    constraint channel_participants_name_check check (name <> '' and octet_length(name) <= 200),
    constraint channel_participants_kind_check check (kind in ('user', 'agent', 'engine')),
    constraint channel_participants_figures_check check (place >= 0 and cursor_seq >= 0 and attempts >= 0),
    constraint channel_participants_lease_check check ((lease_token is null) = (lease_seq is null) and (lease_token is null or lease_until is not null)),
    constraint channel_participants_error_check check (octet_length(last_error) <= 2000)
) with (fillfactor = 50);
create index if not exists channel_participants_user_idx on public.channel_participants (tenant_id, user_id);
comment on table public.channel_participants is 'Who takes part in a channel, and how far they have read. Any number of workers serve one, of which one at a time has its lease.';
comment on column public.channel_participants.user_id is 'The person, or the one for whom an agent or engine acts.';
comment on column public.channel_participants.party is 'As which party of the channel''s agreement it speaks; null: it only listens.';
comment on column public.channel_participants.reads is 'Whether it acknowledges messages; what a mere publisher has not read is not kept for it.';
comment on column public.channel_participants.cursor_seq is 'All messages up to this one are done with: acknowledged, its own, or dead letters.';
comment on column public.channel_participants.attempts is 'How often the first message after the cursor failed; after the first failure one at a time is given.';
comment on column public.channel_participants.lease_until is 'End of the lease; without a token, when the next attempt may begin.';
comment on column public.channel_participants.lease_seq is 'The last message given under the lease.';

create table if not exists public.channel_messages (
    tenant_id uuid not null,
    channel_id uuid not null,
    seq bigint not null,
    sender_id uuid not null,
    user_id uuid not null,
    performative text not null,
    body jsonb,
    message_id text not null,
    in_reply_to bigint,
    conversation bigint not null,
    ended_by bigint,
    run_id uuid,
    created_at timestamptz not null,
    constraint channel_messages_pkey primary key (tenant_id, channel_id, seq),
    constraint channel_messages_sender_key unique (tenant_id, channel_id, sender_id, message_id),
    constraint channel_messages_sender_fkey foreign key (tenant_id, sender_id) references public.channel_participants (tenant_id, id),
    constraint channel_messages_performative_check check (performative in ('request', 'agree', 'refuse', 'inform', 'failure', 'query', 'cfp', 'propose',
        'accept_proposal', 'reject_proposal', 'cancel', 'not_understood', 'subscribe')),
    constraint channel_messages_message_check check (message_id <> '' and octet_length(message_id) <= 200),
    constraint channel_messages_order_check check (seq > 0 and in_reply_to > 0 and in_reply_to < seq and conversation > 0 and conversation <= seq)
);
create index if not exists channel_messages_user_idx on public.channel_messages (tenant_id, user_id);
create index if not exists channel_messages_sender_idx on public.channel_messages (tenant_id, sender_id);
comment on table public.channel_messages is 'What was said, in order. Kept until every reader is past it and retention ends.';
comment on column public.channel_messages.user_id is 'For whom the sender spoke.';
comment on column public.channel_messages.body is 'Null when its author was erased.';
comment on column public.channel_messages.message_id is 'The sender''s own name for it: sent again, it is the same message.';
comment on column public.channel_messages.conversation is 'The message that began the conversation, its own seq when it did.';
comment on column public.channel_messages.ended_by is 'Of a message that began a conversation under an agreement: the one that ended it.';
comment on column public.channel_messages.run_id is 'The run that the sender was in.';

create table if not exists public.channel_dead_letters (
    tenant_id uuid not null,
    channel_id uuid not null,
    participant_id uuid not null,
    seq bigint not null,
    user_id uuid not null,
    attempts smallint not null,
    error text not null,
    created_at timestamptz not null,
    constraint channel_dead_letters_pkey primary key (tenant_id, channel_id, participant_id, seq),
    constraint channel_dead_letters_participant_fkey foreign key (tenant_id, participant_id) references public.channel_participants (tenant_id, id),
    constraint channel_dead_letters_error_check check (octet_length(error) <= 2000)
);
create index if not exists channel_dead_letters_user_idx on public.channel_dead_letters (tenant_id, user_id);
create index if not exists channel_dead_letters_participant_idx on public.channel_dead_letters (tenant_id, participant_id);
comment on table public.channel_dead_letters is 'Messages that a participant failed to handle max_attempts times; its cursor is past them. The message itself stays in the channel.';

-- the same that 010 writes: functions work before it has run, and no login has anything
grant select, insert, update, delete on public.protocol_agreements, public.agreement_parties, public.agreement_versions, public.agreement_acceptances,
    public.agreement_violations, public.communication_channels, public.channel_participants, public.channel_messages, public.channel_dead_letters
    to vanilla_definer, vanilla_system;

set local role vanilla_definer;
alter default privileges revoke execute on functions from public;

-- Agreements: JSON Schema ------------------------------------------------------------------------------------------
-- The part of JSON Schema 2020-12 that is enforced here, whole: a keyword that is not is refused when it is proposed.

create or replace function vanilla.pattern_problem(p_pattern text) returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp as $f$
declare
    -- what means the same in ECMA-262 (with the flag u) and in PostgreSQL: no dot, no class by a letter, no look-around, no back reference
    c_atom constant text := E'^(?:[^][\\\\^$.*+?(){}|[:cntrl:]]|\\\\[][\\\\^$.*+?(){}|/nrt]'
        || E'|\\[\\^?(?:[a-z]-[a-z]|[A-Z]-[A-Z]|[0-9]-[0-9]|[^][\\\\^[:cntrl:]-]|\\\\[][\\\\^$.*+?(){}|/nrt-])+-?\\])(?:[*+?]|\\{[0-9]{1,3}(?:,[0-9]{0,3})?\\})?';
    v_rest text := regexp_replace(p_pattern, E'^\\^', '');
    v_part text;
    v_bounds text[];
    v_depth integer := 0;
    v_size integer := 0;
    v_empty boolean := true;
begin
    if length(p_pattern) > 200 then return 'a pattern has at most 200 characters'; end if;
    if v_rest ~ E'\\$$' and length(substring(v_rest from E'(\\\\*)\\$$')) % 2 = 0 then
        v_rest := left(v_rest, -1);
    end if;
    while v_rest <> '' loop
        v_part := substring(v_rest from c_atom);
        if v_part is not null then
            v_empty := false;
            v_bounds := regexp_match(v_part, E'\\{([0-9]+)(,?)([0-9]*)\\}$');
            if v_bounds is not null then
                if greatest(v_bounds[1]::integer, nullif(v_bounds[3], '')::integer) > 255 or nullif(v_bounds[3], '')::integer < v_bounds[1]::integer then
                    return 'a pattern repeats at most 255 times, and not fewer than at least';
                end if;
                v_size := v_size + greatest(v_bounds[1]::integer, nullif(v_bounds[3], '')::integer);
            end if;
        elsif v_rest ~ E'^\\((?:\\?:|(?!\\?))' then
            v_part := substring(v_rest from E'^\\((?:\\?:)?');
            v_depth := v_depth + 1;
            v_empty := true;
        elsif v_rest ~ '^[)|]' and not v_empty and (v_depth > 0 or v_rest ~ E'^\\|') then
            v_part := substring(v_rest from E'^(?:\\)[*+?]?|\\|)');
            v_depth := v_depth - (v_part <> '|')::integer;
            v_empty := v_part = '|';
        else
            return format('at %s the pattern has what means different things to different readers, or nothing', to_json(left(v_rest, 10)));
        end if;
        v_rest := substr(v_rest, length(v_part) + 1);
    end loop;
    if v_empty or v_depth <> 0 then return 'the pattern is not complete'; end if;
    if v_size > 1000 then return 'a pattern repeats at most 1,000 times in all'; end if;
    begin
        perform '' ~ p_pattern;
    exception when invalid_regular_expression then
        return 'the pattern is no regular expression';
    end;
    return null;
end
$f$;
comment on function vanilla.pattern_problem(text) is
    'Why a pattern is not one that means the same in ECMA-262 and in PostgreSQL; null: it does. What it accepts has no back reference, so PostgreSQL runs it in time linear in the text.';

create or replace function vanilla.schema_problem(p_schema jsonb, p_defs jsonb, p_path text default '', p_depth integer default 0) returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp as $f$
declare
    v record;
    v_type text := jsonb_typeof(p_schema);
    v_path text;
    v_problem text;
begin
    if v_type = 'boolean' then return null; end if;
    if v_type is distinct from 'object' then return format('%s: a schema is an object, true or false', p_path); end if;
    if p_depth > 20 then return format('%s: schemas are nested at most 20 deep', p_path); end if;
    for v in select e.key, e.value, jsonb_typeof(e.value) as type, e.value #>> '{}' as text from jsonb_each(p_schema) e loop
        v_path := p_path || '/' || replace(replace(v.key, '~', '~0'), '/', '~1');
        v_problem := null;
        case
        when v.key in ('const', 'default', 'examples') then null;
        when v.key in ('title', 'description', '$comment') then
            if v.type <> 'string' then v_problem := 'it is a text'; end if;
        when v.key = '$schema' then
            if p_depth > 0 or v.text <> 'https://json-schema.org/draft/2020-12/schema' then v_problem := 'the draft is 2020-12, named at the top'; end if;
        when v.key = 'type' then
            if v.type not in ('string', 'array') or v.value = '[]' or exists (
                    select from jsonb_array_elements(case v.type when 'array' then v.value else jsonb_build_array(v.value) end) t group by t.value
                    having count(*) > 1 or t.value not in ('"null"', '"boolean"', '"object"', '"array"', '"number"', '"string"', '"integer"')) then
                v_problem := 'a type is null, boolean, object, array, number, string or integer, or a list of these';
            end if;
        when v.key = 'enum' then
            if v.type <> 'array' or v.value = '[]' then v_problem := 'it is a list that is not empty'; end if;
        when v.key = 'required' then
            if v.type <> 'array' or exists (select from jsonb_array_elements(v.value) t group by t.value having count(*) > 1 or jsonb_typeof(t.value) <> 'string') then
                v_problem := 'it is a list of different texts';
            end if;
        when v.key in ('minimum', 'maximum', 'exclusiveMinimum', 'exclusiveMaximum', 'multipleOf') then
            if v.type <> 'number' or v.key = 'multipleOf' and v.text::numeric <= 0 then v_problem := 'it is a number, multipleOf one above 0'; end if;
        when v.key in ('minLength', 'maxLength', 'minItems', 'maxItems', 'minProperties', 'maxProperties') then
            if v.type <> 'number' or v.text !~ '^[0-9]{1,9}$' then v_problem := 'it is a whole number from 0'; end if;
        when v.key = 'uniqueItems' then
            if v.type <> 'boolean' then v_problem := 'it is true or false'; end if;
        when v.key = 'pattern' then
            v_problem := case when v.type <> 'string' then 'it is a text' else vanilla.pattern_problem(v.text) end;
        when v.key = '$ref' then
            if v.type <> 'string' or left(v.text, 8) <> '#/$defs/' or not coalesce(p_defs ? substr(v.text, 9), false) then
                v_problem := 'a reference is #/$defs/ and a name that is there';
            end if;
        when v.key in ('items', 'additionalProperties', 'not') then
            v_problem := vanilla.schema_problem(v.value, p_defs, v_path, p_depth + 1);
            if v_problem is not null then return v_problem; end if;
        when v.key in ('properties', '$defs') then
            if v.type <> 'object' then
                v_problem := 'it is an object of schemas';
            elsif v.key = '$defs' and (p_depth > 0 or exists (select from jsonb_object_keys(v.value) k where k !~ '^[A-Za-z0-9_-]{1,63}$')) then
                v_problem := 'definitions stand at the top, with names of A-Z, a-z, 0-9, _ and hyphens';
            else
                select p.problem into v_problem from jsonb_each(v.value) e
                    cross join lateral (select vanilla.schema_problem(e.value, p_defs, v_path || '/' || replace(replace(e.key, '~', '~0'), '/', '~1'), p_depth + 1)) p (problem)
                    where p.problem is not null limit 1;
                if v_problem is not null then return v_problem; end if;
            end if;
        when v.key in ('allOf', 'anyOf', 'oneOf') then
            if v.type <> 'array' or v.value = '[]' then
                v_problem := 'it is a list of schemas that is not empty';
            else
                select p.problem into v_problem from jsonb_array_elements(v.value) with ordinality e (value, nr)
                    cross join lateral (select vanilla.schema_problem(e.value, p_defs, v_path || '/' || e.nr - 1, p_depth + 1)) p (problem)
                    where p.problem is not null limit 1;
                if v_problem is not null then return v_problem; end if;
            end if;
        else
            v_problem := 'this keyword is not enforced';
        end case;
        if v_problem is not null then return format('%s: %s', v_path, v_problem); end if;
    end loop;
    if p_depth = 0 and exists (
            with recursive walk (first, at) as (
                select d.key, r from jsonb_each(p_defs) d cross join vanilla.refs_in_place(d.value) r
                union select w.first, r from walk w cross join vanilla.refs_in_place(p_defs -> w.at) r)
            select from walk w where w.first = w.at) then
        return '/$defs: a definition is itself by way of references';
    end if;
    return null;
end
$f$;
comment on function vanilla.schema_problem(jsonb, jsonb, text, integer) is
    'Why a schema is not one that vanilla.schema_misfit enforces whole: a JSON pointer and a sentence; null: it is. p_defs are the definitions at the top.';

create or replace function vanilla.refs_in_place(p_schema jsonb) returns setof text
language sql immutable set search_path = pg_catalog, pg_temp as $f$
    with recursive parts (part) as (
        select p_schema
        union all
        select c.value from parts s cross join lateral (
            select e.value from unnest(array[s.part -> 'allOf', s.part -> 'anyOf', s.part -> 'oneOf']) l (list)
                cross join jsonb_array_elements(coalesce(l.list, '[]')) e
            union all select s.part -> 'not' where s.part ? 'not') c)
    select substr(s.part ->> '$ref', 9) from parts s where s.part ? '$ref'
$f$;
comment on function vanilla.refs_in_place(jsonb) is 'Definitions that a schema applies to the very value it is applied to.';

create or replace function vanilla.schema_misfit(p_schema jsonb, p_value jsonb, p_defs jsonb, p_path text, p_depth integer, inout steps integer, out problem jsonb)
language plpgsql immutable set search_path = pg_catalog, pg_temp as $f$
declare
    v_type text := jsonb_typeof(p_value);
    v_number numeric;
    v_fits integer;
    v_keyword text;
    v_part record;
    v_item record;
    v record;
begin
    steps := steps - 1;
    if steps <= 0 or p_depth > 32 then
        steps := 0;      -- and so all that asked gives up too
        problem := jsonb_build_object('path', p_path, 'message', case when p_depth > 32 then 'it is nested too deep' else 'it is too much to check' end);
        return;
    end if;
    if p_schema = 'true' then return; end if;
    if p_schema = 'false' then v_keyword := 'false'; end if;
    if p_schema ? 'type' then
        if not (case when jsonb_typeof(p_schema -> 'type') = 'string' then p_schema ->> 'type' = v_type
                or p_schema ->> 'type' = 'integer' and v_type = 'number' and (p_value #>> '{}')::numeric % 1 = 0
            else p_schema -> 'type' ? v_type or p_schema -> 'type' ? 'integer' and v_type = 'number' and (p_value #>> '{}')::numeric % 1 = 0 end) then
            v_keyword := 'type';
        end if;
    end if;
    if v_keyword is null and p_schema ? 'const' and p_value <> p_schema -> 'const' then v_keyword := 'const'; end if;
    if v_keyword is null and p_schema ? 'enum' and not exists (select from jsonb_array_elements(p_schema -> 'enum') e where e.value = p_value) then
        v_keyword := 'enum';
    end if;
    if v_keyword is not null then
        null;
    elsif v_type = 'number' then
        v_number := (p_value #>> '{}')::numeric;
        v_keyword := case when v_number < (p_schema ->> 'minimum')::numeric then 'minimum' when v_number > (p_schema ->> 'maximum')::numeric then 'maximum'
            when v_number <= (p_schema ->> 'exclusiveMinimum')::numeric then 'exclusiveMinimum' when v_number >= (p_schema ->> 'exclusiveMaximum')::numeric then 'exclusiveMaximum'
            when v_number % (p_schema ->> 'multipleOf')::numeric <> 0 then 'multipleOf' end;
    elsif v_type = 'string' then
        v_keyword := case when length(p_value #>> '{}') < (p_schema ->> 'minLength')::integer then 'minLength'
            when length(p_value #>> '{}') > (p_schema ->> 'maxLength')::integer then 'maxLength'
            when (p_value #>> '{}') !~ (p_schema ->> 'pattern') collate "C" then 'pattern' end;
    elsif v_type = 'array' then
        v_keyword := case when jsonb_array_length(p_value) < (p_schema ->> 'minItems')::integer then 'minItems'
            when jsonb_array_length(p_value) > (p_schema ->> 'maxItems')::integer then 'maxItems' end;
        if v_keyword is null and p_schema -> 'uniqueItems' = 'true' and (select count(*) <> count(distinct e.value) from jsonb_array_elements(p_value) e) then
            v_keyword := 'uniqueItems';
        end if;
        if v_keyword is null and p_schema ? 'items' then
            for v in select e.value, e.nr from jsonb_array_elements(p_value) with ordinality e (value, nr) loop
                v_part := vanilla.schema_misfit(p_schema -> 'items', v.value, p_defs, p_path || '/' || v.nr - 1, p_depth + 1, steps);
                steps := v_part.steps;
                problem := v_part.problem;
                if problem is not null then return; end if;
            end loop;
        end if;
    elsif v_type = 'object' then
        if p_schema ? 'required' then
            select 'required' into v_keyword from jsonb_array_elements_text(p_schema -> 'required') r where not p_value ? r limit 1;
        end if;
        if v_keyword is null and (p_schema ? 'minProperties' or p_schema ? 'maxProperties') then
            select case when count(*) < (p_schema ->> 'minProperties')::integer then 'minProperties'
                when count(*) > (p_schema ->> 'maxProperties')::integer then 'maxProperties' end into v_keyword from jsonb_object_keys(p_value);
        end if;
        if v_keyword is null and (p_schema ? 'properties' or p_schema ? 'additionalProperties') then
            for v in select e.key, e.value, coalesce(p_schema -> 'properties' -> e.key, p_schema -> 'additionalProperties') as schema from jsonb_each(p_value) e loop
                continue when v.schema is null;
                v_part := vanilla.schema_misfit(v.schema, v.value, p_defs, p_path || '/' || replace(replace(v.key, '~', '~0'), '/', '~1'), p_depth + 1, steps);
                steps := v_part.steps;
                problem := v_part.problem;
                if problem is not null then return; end if;
            end loop;
        end if;
    end if;
    if v_keyword is null and p_schema ? '$ref' then
        v_part := vanilla.schema_misfit(p_defs -> substr(p_schema ->> '$ref', 9), p_value, p_defs, p_path, p_depth, steps);
        steps := v_part.steps;
        problem := v_part.problem;
        if problem is not null then return; end if;
    end if;
    if v_keyword is null and p_schema ?| array['allOf', 'anyOf', 'oneOf', 'not'] then
        for v in select k.key, case k.key when 'not' then jsonb_build_array(p_schema -> 'not') else p_schema -> k.key end as list
                from unnest(array['allOf', 'anyOf', 'oneOf', 'not']) k (key) where p_schema ? k.key loop
            v_fits := 0;
            for v_item in select e.value from jsonb_array_elements(v.list) e loop
                v_part := vanilla.schema_misfit(v_item.value, p_value, p_defs, p_path, p_depth, steps);
                steps := v_part.steps;
                if v_part.problem is null then v_fits := v_fits + 1; end if;
                if steps = 0 or v.key = 'allOf' and v_part.problem is not null then
                    problem := v_part.problem;
                    return;
                end if;
                exit when v.key = 'anyOf' and v_fits = 1;
            end loop;
            if v.key = 'anyOf' and v_fits = 0 or v.key = 'oneOf' and v_fits <> 1 or v.key = 'not' and v_fits = 1 then
                v_keyword := v.key;
                exit;
            end if;
        end loop;
    end if;
    if v_keyword is not null then
        problem := jsonb_build_object('path', p_path, 'keyword', v_keyword, 'message', format('it does not fit the schema''s %s', v_keyword));
    end if;
end
$f$;
comment on function vanilla.schema_misfit(jsonb, jsonb, jsonb, text, integer, integer) is
    'Where a value does not fit a schema without problems: {path, keyword, message}, null when it does. steps is how many schemas may still be looked at; 0 afterwards: it was too much, which fits nothing.';

-- Agreements: terms ------------------------------------------------------------------------------------------------
create or replace function vanilla.figure_problem(p_terms jsonb, p_key text, p_from bigint, p_until bigint) returns text
language sql immutable return
    case when p_terms ? p_key and (jsonb_typeof(p_terms -> p_key) <> 'number' or p_terms ->> p_key !~ '^[0-9]{1,15}$'
            or (p_terms ->> p_key)::numeric not between p_from and p_until)
        then format('%s is a whole number from %s to %s', p_key, p_from, p_until) end;
comment on function vanilla.figure_problem(jsonb, text, bigint, bigint) is 'Why a figure of the terms, where it is there, is none; null: it is.';

create or replace function vanilla.part_problem(p_terms jsonb, p_key text, p_keys text[]) returns text
language sql immutable return
    case when jsonb_typeof(p_terms -> p_key) <> 'object' then format('%s is an object', p_key)
        when (p_terms -> p_key) - p_keys <> '{}' then format('%s says %s, nothing else', p_key, array_to_string(p_keys, ', ')) end;
comment on function vanilla.part_problem(jsonb, text, text[]) is 'Why a part of the terms, where it is there, is none; null: it is, or is not there.';

create or replace function vanilla.act_opens(p_acts jsonb, p_performative text) returns boolean
language sql immutable set search_path = pg_catalog, pg_temp as $f$
    select coalesce((p_acts -> p_performative ->> 'opens')::boolean,
        not exists (select from jsonb_each(p_acts) a where a.key <> p_performative and a.value -> 'replies' ? p_performative))
$f$;
comment on function vanilla.act_opens(jsonb, text) is 'Whether an act may begin a conversation: it says so, or is a reply to no other.';

create or replace function vanilla.act_problem(p_acts jsonb, p_performative text, p_parties text[]) returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp as $f$
declare
    v_act jsonb := p_acts -> p_performative;
    v_schema jsonb := coalesce(v_act -> 'schema', 'true');
    v_problem text;
begin
    if p_performative not in ('request', 'agree', 'refuse', 'inform', 'failure', 'query', 'cfp', 'propose', 'accept_proposal', 'reject_proposal',
            'cancel', 'not_understood', 'subscribe') then
        return 'it is no performative';
    end if;
    v_problem := coalesce(vanilla.part_problem(p_acts, p_performative, '{schema,senders,replies,reply_within_s,opens,ends}'),
        vanilla.figure_problem(v_act, 'reply_within_s', 1, 31536000));
    if v_problem is not null then
        return v_problem;
    elsif v_act ? 'senders' and (jsonb_typeof(v_act -> 'senders') <> 'array' or v_act -> 'senders' = '[]'
            or exists (select from jsonb_array_elements(v_act -> 'senders') s where jsonb_typeof(s.value) <> 'string' or s.value #>> '{}' <> all (p_parties))) then
        return 'senders is a list of parties';
    elsif v_act ? 'replies' and (jsonb_typeof(v_act -> 'replies') <> 'array'
            or exists (select from jsonb_array_elements(v_act -> 'replies') r where jsonb_typeof(r.value) <> 'string' or not p_acts ? (r.value #>> '{}'))) then
        return 'replies is a list of acts that are there';
    elsif v_act ? 'reply_within_s' and coalesce(v_act -> 'replies', '[]') = '[]' then
        return 'reply_within_s is of an act with replies';
    elsif jsonb_typeof(v_act -> 'opens') <> 'boolean' or jsonb_typeof(v_act -> 'ends') <> 'boolean' then
        return 'opens and ends are true or false';
    end if;
    return '/schema' || vanilla.schema_problem(v_schema, v_schema -> '$defs');
end
$f$;
comment on function vanilla.act_problem(jsonb, text, text[]) is 'What is wrong with an act of the terms; null: nothing.';

create or replace function vanilla.terms_problem(p_content jsonb, p_parties text[]) returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp as $f$
declare
    v_acts jsonb := p_content -> 'acts';
    v_problem text;
begin
    if jsonb_typeof(p_content) is distinct from 'object' or octet_length(p_content::text) > 65536 then
        return 'the content is an object of at most 64 KiB';
    elsif p_content - '{acts,price,sla,data,gate,limits,expires_at}'::text[] <> '{}' then
        return 'the content says acts, price, sla, data, gate, limits and expires_at, nothing else';
    elsif jsonb_typeof(v_acts) is distinct from 'object' or v_acts = '{}' then
        return 'acts are an object with at least one performative';
    end if;
    v_problem := coalesce(vanilla.part_problem(p_content, 'price', '{max_tokens_per_task}'), vanilla.part_problem(p_content, 'sla', '{max_latency_ms,max_attempts}'),
        vanilla.part_problem(p_content, 'data', '{retention_days}'), vanilla.part_problem(p_content, 'limits', '{max_messages,max_open_conversations,max_violations}'),
        vanilla.figure_problem(p_content -> 'price', 'max_tokens_per_task', 0, 1000000000000), vanilla.figure_problem(p_content -> 'sla', 'max_latency_ms', 1, 31536000000),
        vanilla.figure_problem(p_content -> 'sla', 'max_attempts', 1, 100), vanilla.figure_problem(p_content -> 'data', 'retention_days', 1, 36500),
        vanilla.figure_problem(p_content -> 'limits', 'max_messages', 1, 1000000000000), vanilla.figure_problem(p_content -> 'limits', 'max_open_conversations', 1, 1000000),
        vanilla.figure_problem(p_content -> 'limits', 'max_violations', 1, 1000000),
        case when jsonb_typeof(p_content -> 'gate') <> 'string' or p_content ->> 'gate' !~ '^[a-z0-9][a-z0-9_-]{0,62}$' then 'gate is a slug' end);
    if v_problem is not null then return v_problem; end if;
    if p_content ? 'expires_at' then
        begin
            perform (p_content ->> 'expires_at')::timestamptz;
        exception when invalid_datetime_format or datetime_field_overflow or invalid_parameter_value then
            return 'expires_at is a time with its zone';
        end;
    end if;
    select format('acts/%s: %s', a.key, p.problem) into v_problem from jsonb_each(v_acts) a
        cross join lateral (select vanilla.act_problem(v_acts, a.key, p_parties)) p (problem) where p.problem is not null limit 1;
    if v_problem is null then
        select format('acts/%s: nothing leads to it: it does not open a conversation and is a reply to nothing', a.key) into v_problem from jsonb_object_keys(v_acts) a (key)
            where not vanilla.act_opens(v_acts, a.key) and not exists (select from jsonb_each(v_acts) b where b.value -> 'replies' ? a.key) limit 1;
    end if;
    return v_problem;
end
$f$;
comment on function vanilla.terms_problem(jsonb, text[]) is 'What is wrong with the content of an agreement between these parties; null: every rule in it can be enforced.';

create or replace function vanilla.agreement_state(p_agreement public.protocol_agreements) returns text
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
begin
    return case when p_agreement.status in ('proposed', 'active', 'suspended') and p_agreement.expires_at <= vanilla.clock() then 'expired' else p_agreement.status end;
end
$f$;
comment on function vanilla.agreement_state(public.protocol_agreements) is 'What an agreement is now: its end comes by the clock, whoever writes it down.';

-- Agreements: from proposal to end ---------------------------------------------------------------------------------
create or replace function vanilla.speaker(p_tenant_id uuid, out tenant_id uuid, out user_id uuid, out role text)
language plpgsql stable set search_path = pg_catalog, pg_temp as $f$
begin
    tenant_id := vanilla.member_tenant(p_tenant_id);
    user_id := vanilla.claim(4)::uuid;
    role := coalesce(vanilla.claim(5), 'operator');
end
$f$;
comment on function vanilla.speaker(uuid) is 'Who calls, in which tenant: a member, an admin, a program of the tenant, or the operator, whose tenant is null when none is named.';

create or replace function vanilla.speaks_for(p_role text, p_caller uuid, p_user_id uuid) returns boolean
language sql immutable return p_role in ('service', 'operator') or coalesce(p_caller = p_user_id, false);
comment on function vanilla.speaks_for(text, uuid, uuid) is 'Whether a caller says something in a user''s name: the user, or a program. An admin does not put words into their mouth.';

create or replace function vanilla.propose_version(p_agreement public.protocol_agreements, p_party text, p_user_id uuid, p_content jsonb) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_now timestamptz := vanilla.clock();
    v_parties jsonb;
    v_version public.agreement_versions;
    v_problem text;
begin
    select jsonb_object_agg(p.party, p.user_id) into v_parties from public.agreement_parties p where p.tenant_id = p_agreement.tenant_id and p.agreement_id = p_agreement.id;
    v_problem := vanilla.terms_problem(p_content, array(select jsonb_object_keys(v_parties)));
    if v_problem is not null then
        perform vanilla.refuse('VS422', 'the agreement is not valid: ' || v_problem, jsonb_build_object('param', 'content', 'problem', v_problem));
    elsif (p_content ->> 'expires_at')::timestamptz <= v_now then
        perform vanilla.refuse('VS400', 'the agreement ends before it begins', '{"param": "content"}');
    end if;
    v_version.terms := p_content || jsonb_build_object('parties', v_parties, 'expires_at', coalesce((p_content ->> 'expires_at')::timestamptz, 'infinity'));
    v_version.hash := sha256(convert_to(v_version.terms::text, 'UTF8'));
    select coalesce(max(v.version), 0) + 1 into v_version.version from public.agreement_versions v
        where v.tenant_id = p_agreement.tenant_id and v.agreement_id = p_agreement.id;
    insert into public.agreement_versions (tenant_id, agreement_id, version, terms, hash, proposed_by, user_id, proposed_at)
        values (p_agreement.tenant_id, p_agreement.id, v_version.version, v_version.terms, v_version.hash, p_party, p_user_id, v_now);
    insert into public.agreement_acceptances (tenant_id, agreement_id, version, party, user_id, hash, accepted_at)
        values (p_agreement.tenant_id, p_agreement.id, v_version.version, p_party, p_user_id, v_version.hash, v_now);
    update public.protocol_agreements a set open_version = v_version.version, updated_at = v_now,
            expires_at = case when a.status = 'proposed' then (v_version.terms ->> 'expires_at')::timestamptz else a.expires_at end
        where a.tenant_id = p_agreement.tenant_id and a.id = p_agreement.id;
    return jsonb_build_object('agreement_id', p_agreement.id, 'version', v_version.version, 'hash', encode(v_version.hash, 'hex'), 'status', p_agreement.status);
end
$f$;
comment on function vanilla.propose_version(public.protocol_agreements, text, uuid, jsonb) is 'Writes what a party of a locked agreement proposes, and that it accepts it.';

create or replace function public.agreement_propose(p_name text, p_parties jsonb, p_party text, p_content jsonb, p_user_id uuid default null, p_tenant_id uuid default null) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_user public.users := vanilla.engine_user(p_user_id, p_tenant_id);
    v_agreement public.protocol_agreements;
begin
    if jsonb_typeof(p_parties) is distinct from 'object' or (select count(*) not between 2 and 20 from jsonb_object_keys(p_parties)) then
        perform vanilla.refuse('VS400', 'parties are an object of 2 to 20 names with their users', '{"param": "parties"}');
    elsif p_parties ->> p_party is distinct from v_user.id::text then
        perform vanilla.refuse('VS400', 'who proposes is one of the parties', '{"param": "party"}', 'Name the party whose user proposes.');
    end if;
    perform vanilla.hold_open(v_user);
    begin
        insert into public.protocol_agreements (tenant_id, user_id, name, open_version, created_at, updated_at)
            values (v_user.tenant_id, v_user.id, p_name, 1, vanilla.clock(), vanilla.clock()) returning * into v_agreement;
        insert into public.agreement_parties (tenant_id, agreement_id, party, user_id)
            select v_user.tenant_id, v_agreement.id, p.key, (vanilla.find_user(v_user.tenant_id, p.value::uuid)).id from jsonb_each_text(p_parties) p order by p.value;
    exception when check_violation or not_null_violation or invalid_text_representation then
        perform vanilla.refuse('VS400', 'the agreement is not valid: ' || sqlerrm, '{"param": "parties"}',
            'A name of at most 800 bytes; parties are 1 to 63 of a-z, 0-9 and _, beginning with a letter, each with the id of a user.');
    end;
    return vanilla.propose_version(v_agreement, p_party, v_user.id, p_content);
end
$f$;
comment on function public.agreement_propose(text, jsonb, text, jsonb, uuid, uuid) is
    'Proposes an agreement between parties, {name: id of the user who answers for it}, of which p_party is the caller''s and accepts it so. Returns agreement_id, version, hash (hexadecimal), status. VS422: the content has a rule that could not be enforced, such as a keyword of JSON Schema that is not looked at.';

create or replace function vanilla.own_agreement(p_agreement_id uuid, p_party text, p_tenant_id uuid, p_binding boolean, out agreement public.protocol_agreements, out user_id uuid)
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_speaker record := vanilla.speaker(p_tenant_id);
    v_state text;
begin
    select * into agreement from public.protocol_agreements a where a.id = p_agreement_id and (a.tenant_id = v_speaker.tenant_id or v_speaker.tenant_id is null)
        for no key update;
    if found and v_speaker.role = 'user' and not exists (select from public.agreement_parties p
            where p.tenant_id = agreement.tenant_id and p.agreement_id = agreement.id and p.user_id = v_speaker.user_id) then
        agreement := null;
    end if;
    if agreement.id is null then perform vanilla.refuse('VS404', 'no such agreement', jsonb_build_object('agreement_id', p_agreement_id)); end if;
    select p.user_id into own_agreement.user_id from public.agreement_parties p where p.tenant_id = agreement.tenant_id and p.agreement_id = agreement.id and p.party = p_party;
    if own_agreement.user_id is null and (p_binding or p_party is not null or v_speaker.role = 'user') then
        perform vanilla.refuse('VS404', 'no such party', jsonb_build_object('param', 'party', 'party', p_party));
    elsif not vanilla.speaks_for(v_speaker.role, v_speaker.user_id, own_agreement.user_id) and (p_binding or v_speaker.role = 'user') then
        perform vanilla.refuse('VS403', 'only who answers for the party may do this', jsonb_build_object('need', 'party'));
    end if;
    v_state := vanilla.agreement_state(agreement);
    if v_state not in ('proposed', 'active', 'suspended') then
        perform vanilla.refuse('VS409', format('the agreement is %s', v_state), jsonb_build_object('status', v_state));
    end if;
end
$f$;
comment on function vanilla.own_agreement(uuid, text, uuid, boolean) is
    'An agreement that has not ended, locked, and the user of the party for which the caller acts. p_binding: only that user or a program may; else an admin too, also for no party.';

create or replace function vanilla.open_version(p_agreement public.protocol_agreements, p_hash bytea) returns public.agreement_versions
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_version public.agreement_versions;
begin
    select * into v_version from public.agreement_versions v
        where v.tenant_id = p_agreement.tenant_id and v.agreement_id = p_agreement.id and v.version = p_agreement.open_version;
    if not found then
        perform vanilla.refuse('VS409', 'nothing is proposed', jsonb_build_object('status', p_agreement.status));
    elsif p_hash is distinct from v_version.hash then
        perform vanilla.refuse('VS409', 'something else is proposed by now', jsonb_build_object('version', v_version.version, 'hash', encode(v_version.hash, 'hex')), 'Read it again.');
    end if;
    return v_version;
end
$f$;
comment on function vanilla.open_version(public.protocol_agreements, bytea) is 'The version of a locked agreement that waits for answers, if it is the one whose hash is named.';

create or replace function vanilla.decide_version(p_version public.agreement_versions, p_state text) returns text
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_now timestamptz := vanilla.clock();
    v_agreement public.protocol_agreements;
begin
    if p_state = 'active' then
        update public.agreement_versions v set state = 'superseded', decided_at = v_now
            where v.tenant_id = p_version.tenant_id and v.agreement_id = p_version.agreement_id and v.state = 'active';
    end if;
    update public.agreement_versions v set state = p_state, decided_at = v_now
        where v.tenant_id = p_version.tenant_id and v.agreement_id = p_version.agreement_id and v.version = p_version.version;
    update public.protocol_agreements a set updated_at = v_now, open_version = null,
            status = case when a.status = 'proposed' then p_state else a.status end,
            version = case when p_state = 'active' then p_version.version else a.version end,
            expires_at = case when p_state = 'active' then (p_version.terms ->> 'expires_at')::timestamptz else a.expires_at end
        where a.tenant_id = p_version.tenant_id and a.id = p_version.agreement_id and p_state <> 'countered' returning * into v_agreement;
    if p_state = 'active' then
        perform vanilla.audit(p_version.tenant_id, 'agreement.active', 'agreement', p_version.agreement_id, jsonb_build_object('version', p_version.version, 'hash', encode(p_version.hash, 'hex')));
    end if;
    return v_agreement.status;
end
$f$;
comment on function vanilla.decide_version(public.agreement_versions, text) is 'The open version of a locked agreement is active, countered, rejected or withdrawn; returns what the agreement is.';

create or replace function public.agreement_respond(p_agreement_id uuid, p_party text, p_hash bytea, p_decision text, p_content jsonb default null, p_tenant_id uuid default null) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_own record;
    v_version public.agreement_versions;
begin
    if p_decision is null or p_decision not in ('accept', 'counter', 'reject') or (p_decision = 'counter') <> (p_content is not null) then
        perform vanilla.refuse('VS400', 'the answer is accept, reject, or counter with a content', '{"param": "decision"}');
    end if;
    v_own := vanilla.own_agreement(p_agreement_id, p_party, p_tenant_id, true);
    v_version := vanilla.open_version(v_own.agreement, p_hash);
    if p_decision = 'counter' then
        perform vanilla.decide_version(v_version, 'countered');
        return vanilla.propose_version(v_own.agreement, p_party, v_own.user_id, p_content);
    elsif p_decision = 'reject' then
        return jsonb_build_object('agreement_id', p_agreement_id, 'version', v_version.version, 'status', vanilla.decide_version(v_version, 'rejected'));
    end if;
    insert into public.agreement_acceptances (tenant_id, agreement_id, version, party, user_id, hash, accepted_at)
        values (v_version.tenant_id, v_version.agreement_id, v_version.version, p_party, v_own.user_id, v_version.hash, vanilla.clock()) on conflict do nothing;
    return jsonb_build_object('agreement_id', p_agreement_id, 'version', v_version.version, 'hash', encode(v_version.hash, 'hex'), 'status', case
        when exists (select from public.agreement_parties p where p.tenant_id = v_version.tenant_id and p.agreement_id = v_version.agreement_id and not exists (
            select from public.agreement_acceptances a where a.tenant_id = p.tenant_id and a.agreement_id = p.agreement_id and a.version = v_version.version and a.party = p.party))
        then (v_own.agreement).status else vanilla.decide_version(v_version, 'active') end);
end
$f$;
comment on function public.agreement_respond(uuid, text, bytea, text, jsonb, uuid) is
    'A party accepts what is proposed, named by its hash, rejects it, or counters with another content. The last to accept makes it active; a version that was active is superseded. VS409: something else is proposed by now.';

create or replace function public.agreement_amend(p_agreement_id uuid, p_party text, p_content jsonb, p_tenant_id uuid default null) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_own record := vanilla.own_agreement(p_agreement_id, p_party, p_tenant_id, true);
begin
    if (v_own.agreement).open_version is not null then
        perform vanilla.refuse('VS409', 'something is proposed already', jsonb_build_object('version', (v_own.agreement).open_version), 'Answer that, or withdraw it.');
    end if;
    return vanilla.propose_version(v_own.agreement, p_party, v_own.user_id, p_content);
end
$f$;
comment on function public.agreement_amend(uuid, text, jsonb, uuid) is 'A party of an agreement proposes another version of it. What is active binds until every party has accepted the new one.';

create or replace function public.agreement_withdraw(p_agreement_id uuid, p_party text, p_tenant_id uuid default null) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_own record := vanilla.own_agreement(p_agreement_id, p_party, p_tenant_id, true);
    v_version public.agreement_versions;
begin
    select * into v_version from public.agreement_versions v where v.tenant_id = (v_own.agreement).tenant_id and v.agreement_id = p_agreement_id
        and v.version = (v_own.agreement).open_version;
    if v_version.proposed_by is distinct from p_party then
        perform vanilla.refuse('VS409', 'the party has proposed nothing that is open', jsonb_build_object('status', (v_own.agreement).status));
    end if;
    return jsonb_build_object('agreement_id', p_agreement_id, 'version', v_version.version, 'status', vanilla.decide_version(v_version, 'withdrawn'));
end
$f$;
comment on function public.agreement_withdraw(uuid, text, uuid) is 'A party takes back what it proposed and not all have accepted; what is active stays so.';

create or replace function vanilla.move_agreement(p_agreement public.protocol_agreements, p_status text, p_party text, p_reason text) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
begin
    if p_status in ('terminated', 'expired') then
        update public.agreement_versions v set state = case p_status when 'expired' then 'expired' else 'withdrawn' end, decided_at = vanilla.clock()
            where v.tenant_id = p_agreement.tenant_id and v.agreement_id = p_agreement.id and v.state = 'proposed';
    end if;
    update public.protocol_agreements a set status = p_status, suspended_by = case when p_status = 'suspended' then p_party end, reason = nullif(left(p_reason, 500), ''),
            violations = case when p_status = 'active' then 0 else a.violations end, updated_at = vanilla.clock(),
            open_version = case when p_status in ('terminated', 'expired') then null else a.open_version end
        where a.tenant_id = p_agreement.tenant_id and a.id = p_agreement.id;
    perform vanilla.audit(p_agreement.tenant_id, 'agreement.' || p_status, 'agreement', p_agreement.id, jsonb_build_object('party', p_party, 'reason', p_reason));
    return jsonb_build_object('agreement_id', p_agreement.id, 'version', p_agreement.version, 'status', p_status);
end
$f$;
comment on function vanilla.move_agreement(public.protocol_agreements, text, text, text) is 'A locked agreement is suspended, active again, terminated or expired.';

create or replace function public.agreement_suspend(p_agreement_id uuid, p_party text default null, p_reason text default '', p_tenant_id uuid default null) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_own record := vanilla.own_agreement(p_agreement_id, p_party, p_tenant_id, false);
begin
    if (v_own.agreement).status <> 'active' then
        perform vanilla.refuse('VS409', format('the agreement is %s', (v_own.agreement).status), jsonb_build_object('status', (v_own.agreement).status));
    end if;
    return vanilla.move_agreement(v_own.agreement, 'suspended', p_party, p_reason);
end
$f$;
comment on function public.agreement_suspend(uuid, text, text, uuid) is 'A party, or an admin, lets an agreement rest: its channels take no message until it is resumed.';

create or replace function public.agreement_resume(p_agreement_id uuid, p_party text default null, p_tenant_id uuid default null) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_own record := vanilla.own_agreement(p_agreement_id, p_party, p_tenant_id, false);
    v_agreement public.protocol_agreements := v_own.agreement;
begin
    if v_agreement.status <> 'suspended' then
        perform vanilla.refuse('VS409', format('the agreement is %s', v_agreement.status), jsonb_build_object('status', v_agreement.status));
    elsif p_party is not null and (v_agreement.suspended_by <> p_party or v_agreement.suspended_by is null and exists (
            select from public.agreement_violations x where x.tenant_id = v_agreement.tenant_id and x.agreement_id = v_agreement.id and x.party = p_party
            order by x.id desc limit v_agreement.violations)) then
        perform vanilla.refuse('VS403', 'it is for another party to resume it', jsonb_build_object('suspended_by', v_agreement.suspended_by),
            'The party that suspended it resumes it; after violations one that made none, or an admin.');
    end if;
    return vanilla.move_agreement(v_agreement, 'active', p_party, null);
end
$f$;
comment on function public.agreement_resume(uuid, text, uuid) is
    'A suspended agreement goes on, and violations count from 0: by the party that suspended it; after too many violations, by one that made none; by an admin.';

create or replace function public.agreement_terminate(p_agreement_id uuid, p_party text default null, p_reason text default '', p_tenant_id uuid default null) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_own record := vanilla.own_agreement(p_agreement_id, p_party, p_tenant_id, false);
begin
    return vanilla.move_agreement(v_own.agreement, 'terminated', p_party, p_reason);
end
$f$;
comment on function public.agreement_terminate(uuid, text, text, uuid) is 'A party, or an admin, ends an agreement for good: its channels take no message any more.';

create or replace function vanilla.agreement_expire_due(p_tenant_id uuid, p_limit integer) returns integer
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_agreement public.protocol_agreements;
    v_expired integer := 0;
begin
    for v_agreement in select * from public.protocol_agreements a where a.tenant_id = p_tenant_id and a.status in ('proposed', 'active', 'suspended')
            and a.expires_at <= vanilla.clock() order by a.id limit p_limit for no key update skip locked loop
        perform vanilla.move_agreement(v_agreement, 'expired', null, null);
        v_expired := v_expired + 1;
    end loop;
    return v_expired;
end
$f$;
comment on function vanilla.agreement_expire_due(uuid, integer) is 'Writes down that agreements of a tenant have expired, which they had without it.';

create or replace function vanilla.readable_agreement(p_agreement_id uuid, p_tenant_id uuid) returns public.protocol_agreements
language plpgsql stable set search_path = pg_catalog, pg_temp as $f$
declare
    v_speaker record := vanilla.speaker(p_tenant_id);
    v_agreement public.protocol_agreements;
begin
    select * into v_agreement from public.protocol_agreements a where a.id = p_agreement_id and (a.tenant_id = v_speaker.tenant_id or v_speaker.tenant_id is null)
        and (v_speaker.role <> 'user' or exists (select from public.agreement_parties p where p.tenant_id = a.tenant_id and p.agreement_id = a.id and p.user_id = v_speaker.user_id));
    if not found then perform vanilla.refuse('VS404', 'no such agreement', jsonb_build_object('agreement_id', p_agreement_id)); end if;
    return v_agreement;
end
$f$;
comment on function vanilla.readable_agreement(uuid, uuid) is 'An agreement that the caller may read: their parties'', admins'' all of the tenant.';

create or replace function public.agreement_read(p_agreement_id uuid, p_tenant_id uuid default null) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_agreement public.protocol_agreements := vanilla.readable_agreement(p_agreement_id, p_tenant_id);
begin
    return jsonb_build_object('id', v_agreement.id, 'name', v_agreement.name, 'status', vanilla.agreement_state(v_agreement), 'version', v_agreement.version,
        'open_version', v_agreement.open_version, 'expires_at', nullif(v_agreement.expires_at, 'infinity'), 'violations', v_agreement.violations,
        'suspended_by', v_agreement.suspended_by, 'reason', v_agreement.reason, 'created_at', v_agreement.created_at,
        'versions', (select jsonb_agg(jsonb_build_object('version', v.version, 'state', v.state, 'hash', encode(v.hash, 'hex'), 'terms', v.terms, 'proposed_by', v.proposed_by,
                'proposed_at', v.proposed_at, 'decided_at', v.decided_at, 'accepted_by', (select coalesce(jsonb_agg(a.party order by a.party), '[]')
                    from public.agreement_acceptances a where a.tenant_id = v.tenant_id and a.agreement_id = v.agreement_id and a.version = v.version)) order by v.version desc)
            from public.agreement_versions v where v.tenant_id = v_agreement.tenant_id and v.agreement_id = v_agreement.id),
        'latest_violations', (select coalesce(jsonb_agg(to_jsonb(x) - '{tenant_id,agreement_id,user_id}'::text[] order by x.id desc), '[]') from (
            select * from public.agreement_violations x where x.tenant_id = v_agreement.tenant_id and x.agreement_id = v_agreement.id order by x.id desc limit 20) x));
end
$f$;
comment on function public.agreement_read(uuid, uuid) is 'An agreement with its versions, who accepted them, and the last 20 violations: for its parties and admins.';

create or replace function public.my_agreements(p_tenant_id uuid default null)
returns table (id uuid, name text, status text, version integer, open_version integer, violations integer, expires_at timestamptz, created_at timestamptz)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_speaker record := vanilla.speaker(p_tenant_id);
begin
    return query select a.id, a.name, vanilla.agreement_state(a), a.version, a.open_version, a.violations, nullif(a.expires_at, 'infinity'), a.created_at
        from public.protocol_agreements a where (a.tenant_id = v_speaker.tenant_id or v_speaker.tenant_id is null)
          and (v_speaker.role <> 'user' or exists (select from public.agreement_parties p where p.tenant_id = a.tenant_id and p.agreement_id = a.id and p.user_id = v_speaker.user_id))
        order by a.id desc limit 1000;
end
$f$;
comment on function public.my_agreements(uuid) is 'The newest 1,000 agreements to which the caller is a party; of an admin, all of the tenant.';

-- Agreements: what a message breaks --------------------------------------------------------------------------------
create or replace function vanilla.agreement_breach(p_terms jsonb, p_channel public.communication_channels, p_party text, p_performative text,
    p_replied public.channel_messages, p_root public.channel_messages, p_now timestamptz) returns jsonb
language plpgsql immutable set search_path = pg_catalog, pg_temp as $f$
declare
    v_acts jsonb := p_terms -> 'acts';
    v_act jsonb := v_acts -> p_performative;
    v_asked jsonb := v_acts -> p_replied.performative;
    v_limits jsonb := p_terms -> 'limits';
begin
    return case
        when v_act is null then jsonb_build_object('rule', 'performative', 'message', format('%s is no act of the agreement', p_performative))
        when p_party is null or v_act ? 'senders' and not v_act -> 'senders' ? p_party
            then jsonb_build_object('rule', 'sender', 'message', format('%s is not for %s to say', p_performative, coalesce(p_party, 'a listener')))
        when p_replied.seq is null and not vanilla.act_opens(v_acts, p_performative)
            then jsonb_build_object('rule', 'reply', 'message', format('%s begins no conversation', p_performative))
        when p_replied.seq is not null and not coalesce(v_asked -> 'replies' ? p_performative, false)
            then jsonb_build_object('rule', 'reply', 'message', format('%s is no reply to %s', p_performative, p_replied.performative))
        when p_root.ended_by is not null
            then jsonb_build_object('rule', 'conversation', 'message', 'the conversation has ended')
        when p_replied.created_at + make_interval(secs => (v_asked ->> 'reply_within_s')::double precision) < p_now
            then jsonb_build_object('rule', 'deadline', 'message', format('a reply to %s comes within %s s', p_replied.performative, v_asked ->> 'reply_within_s'))
        when p_channel.last_seq >= (v_limits ->> 'max_messages')::bigint
            then jsonb_build_object('rule', 'limit', 'message', format('a channel has at most %s messages', v_limits ->> 'max_messages'))
        when p_replied.seq is null and p_channel.open_conversations >= (v_limits ->> 'max_open_conversations')::bigint and not vanilla.act_ends(v_act)
            then jsonb_build_object('rule', 'limit', 'message', format('at most %s conversations are open', v_limits ->> 'max_open_conversations')) end;
end
$f$;
comment on function vanilla.agreement_breach(jsonb, public.communication_channels, text, text, public.channel_messages, public.channel_messages, timestamptz) is
    'Which rule but the schema of its body a message breaks: {rule, message}, null for none. Given are the terms, the locked channel, who speaks, the message it replies to and the one that began the conversation.';

create or replace function vanilla.act_ends(p_act jsonb) returns boolean
language sql immutable return coalesce((p_act ->> 'ends')::boolean, coalesce(p_act -> 'replies', '[]') = '[]');
comment on function vanilla.act_ends(jsonb) is 'Whether an act ends the conversation it is said in: it says so, or nothing replies to it.';

create or replace function vanilla.schema_breach(p_terms jsonb, p_performative text, p_body jsonb) returns jsonb
language plpgsql immutable set search_path = pg_catalog, pg_temp as $f$
declare
    v_schema jsonb := p_terms -> 'acts' -> p_performative -> 'schema';
    v_problem jsonb;
begin
    if v_schema is null then return null; end if;
    select m.problem into v_problem from vanilla.schema_misfit(v_schema, p_body, v_schema -> '$defs', '', 0, 10000) m;
    return jsonb_build_object('rule', 'schema', 'path', left(v_problem ->> 'path', 500), 'message', v_problem -> 'message');
end
$f$;
comment on function vanilla.schema_breach(jsonb, text, jsonb) is 'Where a body does not fit the schema of its act: {rule, path, message}, whose path is null when it fits.';

create or replace function vanilla.record_violation(p_agreement public.protocol_agreements, p_limits jsonb, p_channel_id uuid, p_participant public.channel_participants,
    p_performative text, p_breach jsonb) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_agreement public.protocol_agreements;
    v_most integer := coalesce((p_limits ->> 'max_violations')::integer, 10);
begin
    insert into public.agreement_violations (tenant_id, agreement_id, version, channel_id, participant_id, party, user_id, performative, rule, path, message, created_at)
        values (p_agreement.tenant_id, p_agreement.id, p_agreement.version, p_channel_id, p_participant.id, p_participant.party, p_participant.user_id, p_performative,
            p_breach ->> 'rule', coalesce(p_breach ->> 'path', ''), p_breach ->> 'message', vanilla.clock());
    update public.protocol_agreements a set violations = a.violations + 1 where a.tenant_id = p_agreement.tenant_id and a.id = p_agreement.id returning * into v_agreement;
    if v_agreement.violations >= v_most and v_agreement.status = 'active' then
        perform vanilla.move_agreement(v_agreement, 'suspended', null, format('%s violations', v_agreement.violations));
    end if;
    return jsonb_build_object('seq', null, 'replayed', false, 'refused', jsonb_build_object('code', 'agreement_violated', 'rule', p_breach ->> 'rule',
        'path', coalesce(p_breach ->> 'path', ''), 'message', p_breach ->> 'message', 'violations', v_agreement.violations, 'suspended', v_agreement.violations >= v_most));
end
$f$;
comment on function vanilla.record_violation(public.protocol_agreements, jsonb, uuid, public.channel_participants, text, jsonb) is
    'Writes down a message that broke an agreement, counts it, suspends the agreement at the limit, and says what channel_send answers.';

-- Channels: open, read, close --------------------------------------------------------------------------------------
create or replace function public.channel_open(p_name text, p_kind text, p_participants jsonb, p_agreement_id uuid default null, p_limits jsonb default '{}',
    p_user_id uuid default null, p_tenant_id uuid default null) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_user public.users := vanilla.engine_user(p_user_id, p_tenant_id);
    v_now timestamptz := vanilla.clock();
    v_policy text := p_limits ->> 'floor';
    v_agreement public.protocol_agreements;
    v_terms jsonb;
    v_channel public.communication_channels;
    v_problem text;
begin
    if jsonb_typeof(p_limits) is distinct from 'object' or p_limits - '{max_messages,max_attempts,floor,floor_s}'::text[] <> '{}' then
        v_problem := 'limits are an object of max_messages, max_attempts, floor and floor_s';
    elsif jsonb_typeof(p_participants) is distinct from 'array' or jsonb_array_length(p_participants) not between 2 and 100
            or p_kind = 'direct' and jsonb_array_length(p_participants) <> 2 then
        v_problem := 'participants are a list of 2 to 100, of a direct channel 2';
    elsif exists (select from jsonb_array_elements(p_participants) p where jsonb_typeof(p.value) <> 'object'
            or p.value - '{name,kind,user_id,party,reads,manages}'::text[] <> '{}') then
        v_problem := 'a participant is an object of name, kind, user_id, party, reads and manages';
    elsif (select count(*) filter (where p.value ->> 'manages' = 'true') from jsonb_array_elements(p_participants) p) <> (v_policy is not distinct from 'manager')::integer then
        v_problem := 'one participant manages where the floor is a manager''s, else none';
    end if;
    v_problem := coalesce(v_problem, vanilla.figure_problem(p_limits, 'max_messages', 1, 1000000000000), vanilla.figure_problem(p_limits, 'max_attempts', 1, 100),
        vanilla.figure_problem(p_limits, 'floor_s', 1, 86400));
    if v_problem is not null then
        perform vanilla.refuse('VS400', 'the channel is not valid: ' || v_problem, jsonb_build_object('param', case when v_problem like 'limits%' then 'limits' else 'participants' end));
    end if;
    perform vanilla.hold_open(v_user);
    if p_agreement_id is not null then
        select * into v_agreement from public.protocol_agreements a where a.tenant_id = v_user.tenant_id and a.id = p_agreement_id
            and (vanilla.claim(5) is distinct from 'user'
                or exists (select from public.agreement_parties p where p.tenant_id = a.tenant_id and p.agreement_id = a.id and p.user_id = v_user.id)) for key share;
        if not found then perform vanilla.refuse('VS404', 'no such agreement', jsonb_build_object('param', 'agreement_id', 'agreement_id', p_agreement_id)); end if;
        v_terms := vanilla.binding_terms(v_agreement);
    end if;
    begin
        insert into public.communication_channels (tenant_id, user_id, name, kind, agreement_id, max_messages, max_attempts, floor_policy, floor_s, created_at)
            values (v_user.tenant_id, v_user.id, p_name, p_kind, p_agreement_id, (p_limits ->> 'max_messages')::bigint,
                coalesce((p_limits ->> 'max_attempts')::smallint, (v_terms #>> '{sla,max_attempts}')::smallint, 5), v_policy, coalesce((p_limits ->> 'floor_s')::integer, 300), v_now)
            returning * into v_channel;
        insert into public.channel_participants (tenant_id, channel_id, place, name, kind, user_id, party, reads, manages)
            select v_user.tenant_id, v_channel.id, p.nr - 1, p.value ->> 'name', coalesce(p.value ->> 'kind', 'agent'),
                case when p.value ? 'user_id' then (vanilla.find_user(v_user.tenant_id, (p.value ->> 'user_id')::uuid)).id else v_user.id end, p.value ->> 'party',
                coalesce((p.value ->> 'reads')::boolean, true), coalesce((p.value ->> 'manages')::boolean, false)
            from jsonb_array_elements(p_participants) with ordinality p (value, nr) order by p.value ->> 'user_id', p.nr;
    exception
        when check_violation or not_null_violation or invalid_text_representation then
            perform vanilla.refuse('VS400', 'the channel is not valid: ' || sqlerrm, '{"param": "participants"}',
                'A name of at most 800 bytes, the kind direct, group or topic, a floor only in a group; participants with a name and the kind user, agent or engine.');
        when unique_violation then
            perform vanilla.refuse('VS409', 'two participants have the same name', '{"param": "participants"}');
    end;
    if exists (select from public.channel_participants p where p.tenant_id = v_user.tenant_id and p.channel_id = v_channel.id and p.party is not null
            and v_terms #>> array['parties', p.party] is distinct from p.user_id::text) then
        perform vanilla.refuse('VS400', 'a participant speaks as a party that its user is not', '{"param": "participants"}');
    end if;
    if v_policy is not null then
        v_channel := vanilla.give_floor(v_channel, vanilla.next_floor(v_channel, null));
        update public.communication_channels c set floor_holder = v_channel.floor_holder, floor_until = v_channel.floor_until
            where c.tenant_id = v_channel.tenant_id and c.id = v_channel.id;
    end if;
    return jsonb_build_object('channel_id', v_channel.id, 'participants', (select jsonb_object_agg(p.name, p.id) from public.channel_participants p
        where p.tenant_id = v_user.tenant_id and p.channel_id = v_channel.id));
end
$f$;
comment on function public.channel_open(text, text, jsonb, uuid, jsonb, uuid, uuid) is
    'Opens a channel between participants, each {name, kind: user, agent or engine, user_id, party, reads, manages}; limits are max_messages, max_attempts, floor (round_robin, manager, bid), floor_s. With an agreement every message is held to it. Returns channel_id and the participants'' ids by name.';

create or replace function vanilla.binding_terms(p_agreement public.protocol_agreements) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_state text := vanilla.agreement_state(p_agreement);
begin
    if v_state <> 'active' then
        perform vanilla.refuse('VS409', format('the agreement is %s', v_state), jsonb_build_object('agreement_id', p_agreement.id, 'status', v_state));
    end if;
    return (select v.terms from public.agreement_versions v where v.tenant_id = p_agreement.tenant_id and v.agreement_id = p_agreement.id and v.version = p_agreement.version);
end
$f$;
comment on function vanilla.binding_terms(public.protocol_agreements) is 'What an agreement says now; VS409 when it is not active.';

create or replace function vanilla.readable_channel(p_channel_id uuid, p_tenant_id uuid) returns public.communication_channels
language plpgsql stable set search_path = pg_catalog, pg_temp as $f$
declare
    v_speaker record := vanilla.speaker(p_tenant_id);
    v_channel public.communication_channels;
begin
    select * into v_channel from public.communication_channels c where c.id = p_channel_id and (c.tenant_id = v_speaker.tenant_id or v_speaker.tenant_id is null)
        and (v_speaker.role <> 'user' or c.user_id = v_speaker.user_id
            or exists (select from public.channel_participants p where p.tenant_id = c.tenant_id and p.channel_id = c.id and p.user_id = v_speaker.user_id));
    if not found then perform vanilla.refuse('VS404', 'no such channel', jsonb_build_object('channel_id', p_channel_id)); end if;
    return v_channel;
end
$f$;
comment on function vanilla.readable_channel(uuid, uuid) is 'A channel that the caller may read: its owner''s, its participants'' users'', admins'' all of the tenant.';

create or replace function public.channel_history(p_channel_id uuid, p_after bigint default 0, p_limit integer default 100, p_tenant_id uuid default null)
returns table (seq bigint, sender_id uuid, sender text, performative text, body jsonb, message_id text, in_reply_to bigint, conversation bigint, run_id uuid, created_at timestamptz)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_sort = off as $f$
declare
    v_channel public.communication_channels := vanilla.readable_channel(p_channel_id, p_tenant_id);
begin
    return query select m.seq, m.sender_id, p.name, m.performative, m.body, m.message_id, m.in_reply_to, m.conversation, m.run_id, m.created_at
        from public.channel_messages m
        join public.channel_participants p on p.tenant_id = m.tenant_id and p.id = m.sender_id
        where m.tenant_id = v_channel.tenant_id and m.channel_id = v_channel.id and m.seq > p_after order by m.seq limit least(greatest(p_limit, 1), 1000);
end
$f$;
comment on function public.channel_history(uuid, bigint, integer, uuid) is
    'Messages of a channel after a seq, in order, at most 1,000: for its owner, its participants'' users and admins. It moves no cursor.';

create or replace function public.channel_read(p_channel_id uuid, p_tenant_id uuid default null) returns jsonb
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_channel public.communication_channels := vanilla.readable_channel(p_channel_id, p_tenant_id);
begin
    return to_jsonb(v_channel) - '{tenant_id,told_at,floor_s}'::text[] || jsonb_build_object('participants', (
        select jsonb_agg(jsonb_build_object('id', p.id, 'name', p.name, 'kind', p.kind, 'user_id', p.user_id, 'party', p.party, 'reads', p.reads, 'manages', p.manages,
                'cursor_seq', p.cursor_seq, 'attempts', p.attempts, 'lease_until', p.lease_until, 'last_error', p.last_error,
                'dead_letters', (select count(*) from public.channel_dead_letters d where d.tenant_id = p.tenant_id and d.participant_id = p.id)) order by p.place)
        from public.channel_participants p where p.tenant_id = v_channel.tenant_id and p.channel_id = v_channel.id));
end
$f$;
comment on function public.channel_read(uuid, uuid) is 'A channel with its participants, how far each has read and what it could not handle.';

create or replace function public.my_channels(p_tenant_id uuid default null)
returns table (id uuid, name text, kind text, status text, last_seq bigint, agreement_id uuid, user_id uuid, participants bigint, created_at timestamptz, closed_at timestamptz)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_speaker record := vanilla.speaker(p_tenant_id);
begin
    return query select c.id, c.name, c.kind, c.status, c.last_seq, c.agreement_id, c.user_id,
            (select count(*) from public.channel_participants p where p.tenant_id = c.tenant_id and p.channel_id = c.id), c.created_at, c.closed_at
        from public.communication_channels c where (c.tenant_id = v_speaker.tenant_id or v_speaker.tenant_id is null)
          and (v_speaker.role <> 'user' or c.user_id = v_speaker.user_id
            or exists (select from public.channel_participants p where p.tenant_id = c.tenant_id and p.channel_id = c.id and p.user_id = v_speaker.user_id))
        order by c.id desc limit 1000;
end
$f$;
comment on function public.my_channels(uuid) is 'The newest 1,000 channels that the caller owns or takes part in; of an admin, all of the tenant.';

create or replace function public.channel_close(p_channel_id uuid, p_reason text default '', p_tenant_id uuid default null) returns boolean
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_channel public.communication_channels := vanilla.readable_channel(p_channel_id, p_tenant_id);
begin
    if vanilla.claim(5) = 'user' and v_channel.user_id <> vanilla.claim(4)::uuid then
        perform vanilla.refuse('VS403', 'only its owner or an admin closes a channel', '{"need": "owner"}');
    end if;
    update public.communication_channels c set status = 'closed', closed_at = vanilla.clock(), close_reason = nullif(left(p_reason, 500), ''), floor_holder = null, floor_until = null
        where c.tenant_id = v_channel.tenant_id and c.id = v_channel.id and c.status = 'open';
    if found then perform pg_notify('vanilla_channels', p_channel_id::text); end if;
    return found;
end
$f$;
comment on function public.channel_close(uuid, text, uuid) is 'Closes a channel for good: it takes no message, what it has can still be read and acknowledged. False: it was closed already.';

-- Channels: send and receive ---------------------------------------------------------------------------------------
create or replace function vanilla.speaking_participant(p_channel_id uuid, p_participant_id uuid, p_tenant_id uuid) returns public.channel_participants
language plpgsql stable set search_path = pg_catalog, pg_temp as $f$
declare
    v_speaker record := vanilla.speaker(p_tenant_id);
    v_participant public.channel_participants;
begin
    if v_speaker.tenant_id is null then      -- the operator, who names none
        select c.tenant_id into v_speaker.tenant_id from public.communication_channels c where c.id = p_channel_id order by c.tenant_id limit 1;
    end if;
    select * into v_participant from public.channel_participants p where p.tenant_id = v_speaker.tenant_id and p.id = p_participant_id and p.channel_id = p_channel_id;
    if not found or not vanilla.speaks_for(v_speaker.role, v_speaker.user_id, v_participant.user_id)
            and (v_speaker.role = 'user' or v_participant.kind = 'user') then
        perform vanilla.readable_channel(p_channel_id, p_tenant_id);
        if v_participant.id is null then
            perform vanilla.refuse('VS404', 'no such participant', jsonb_build_object('participant_id', p_participant_id));
        end if;
        perform vanilla.refuse('VS403', 'only who it acts for speaks as this participant', jsonb_build_object('need', 'participant'));
    end if;
    return v_participant;
end
$f$;
comment on function vanilla.speaking_participant(uuid, uuid, uuid) is
    'A participant as which the caller may speak and read: the user it acts for, a program of the tenant, an admin unless it is a person.';

create or replace function vanilla.sent_before(p_participant public.channel_participants, p_performative text, p_body jsonb, p_message_id text, p_in_reply_to bigint) returns bigint
language plpgsql volatile set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan set enable_seqscan = off as $f$
declare
    v_message public.channel_messages;
begin
    select * into v_message from public.channel_messages m where m.tenant_id = p_participant.tenant_id and m.channel_id = p_participant.channel_id
        and m.sender_id = p_participant.id and m.message_id = p_message_id;
    if found and (v_message.performative, v_message.body, v_message.in_reply_to) is distinct from (p_performative, p_body, p_in_reply_to) then
        perform vanilla.refuse('VS410', 'the message id was used for another message', jsonb_build_object('message_id', p_message_id, 'seq', v_message.seq));
    end if;
    return v_message.seq;
end
$f$;
comment on function vanilla.sent_before(public.channel_participants, text, jsonb, text, bigint) is 'The seq of a message that its sender has sent before; null: it has not. VS410 when it said something else.';

create or replace function vanilla.next_floor(p_channel public.communication_channels, p_after uuid) returns uuid
language sql stable set search_path = pg_catalog, pg_temp as $f$
    select p.id from public.channel_participants p
    left join public.channel_participants h on h.tenant_id = p.tenant_id and h.id = p_after
    where p.tenant_id = p_channel.tenant_id and p.channel_id = p_channel.id
      and (p.party is not null or p_channel.agreement_id is null) and case p_channel.floor_policy when 'manager' then p.manages when 'bid' then p.bid is not null else true end
    order by p.bid desc nulls last, (p_channel.floor_policy = 'round_robin' and p.place > h.place) desc nulls last, p.place limit 1
$f$;
comment on function vanilla.next_floor(public.communication_channels, uuid) is
    'Who has the floor after somebody: the next in the circle, the manager, or the highest bid, of equal ones the earlier place.';

create or replace function vanilla.give_floor(p_channel public.communication_channels, p_to uuid) returns public.communication_channels
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
begin
    p_channel.floor_holder := p_to;
    p_channel.floor_until := case when p_to is not null then vanilla.clock() + make_interval(secs => p_channel.floor_s) end;
    if p_channel.floor_policy = 'bid' then
        update public.channel_participants p set bid = null where p.tenant_id = p_channel.tenant_id and p.id = p_to;
    end if;
    return p_channel;
end
$f$;
comment on function vanilla.give_floor(public.communication_channels, uuid) is 'A locked channel with another holder of the floor, for the caller to write; whose bid won bids no more.';

create or replace function public.channel_send(p_channel_id uuid, p_participant_id uuid, p_performative text, p_body jsonb, p_message_id text, p_in_reply_to bigint default null,
    p_run_id uuid default null, p_tenant_id uuid default null) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan set enable_seqscan = off as $f$
declare
    v_participant public.channel_participants := vanilla.speaking_participant(p_channel_id, p_participant_id, p_tenant_id);
    v_now timestamptz;
    v_seq bigint;
    v_looked bigint;
    v_channel public.communication_channels;
    v_agreement public.protocol_agreements;
    v_version integer;
    v_terms jsonb;
    v_breach jsonb;
    v_replied public.channel_messages;
    v_root public.channel_messages;
    v_ends boolean := false;
begin
    if p_performative is null or p_performative not in ('request', 'agree', 'refuse', 'inform', 'failure', 'query', 'cfp', 'propose', 'accept_proposal',
            'reject_proposal', 'cancel', 'not_understood', 'subscribe') then
        perform vanilla.refuse('VS400', 'there is no such performative', '{"param": "performative"}');
    elsif p_message_id is null or p_message_id = '' or octet_length(p_message_id) > 200 then
        perform vanilla.refuse('VS400', 'a message has an id of 1 to 200 bytes', '{"param": "message_id"}');
    elsif p_body is null or pg_column_size(p_body) > 65536 then
        perform vanilla.refuse('VS400', 'a body is JSON of at most 64 KiB', '{"param": "body"}');
    end if;
    -- what takes time is done before the channel is locked, for what is agreed now
    select c.agreement_id, c.last_seq into v_channel.agreement_id, v_looked from public.communication_channels c
        where c.tenant_id = v_participant.tenant_id and c.id = v_participant.channel_id;
    v_seq := vanilla.sent_before(v_participant, p_performative, p_body, p_message_id, p_in_reply_to);
    if v_seq is not null then return jsonb_build_object('seq', v_seq, 'replayed', true); end if;
    if v_channel.agreement_id is not null then
        select * into v_agreement from public.protocol_agreements a where a.tenant_id = v_participant.tenant_id and a.id = v_channel.agreement_id;
        v_terms := vanilla.binding_terms(v_agreement);
        v_version := v_agreement.version;
        v_breach := vanilla.schema_breach(v_terms, p_performative, p_body);
    end if;
    select * into v_channel from public.communication_channels c where c.tenant_id = v_participant.tenant_id and c.id = v_participant.channel_id for no key update;
    if not found then perform vanilla.refuse('VS404', 'no such channel', jsonb_build_object('channel_id', p_channel_id)); end if;      -- deleted meanwhile
    if v_channel.last_seq <> v_looked then
        v_seq := vanilla.sent_before(v_participant, p_performative, p_body, p_message_id, p_in_reply_to);
        if v_seq is not null then return jsonb_build_object('seq', v_seq, 'replayed', true); end if;
    end if;
    v_now := vanilla.clock();
    if v_channel.status = 'closed' then
        perform vanilla.refuse('VS409', 'the channel is closed', jsonb_build_object('status', 'closed'));
    elsif v_channel.last_seq >= v_channel.max_messages then
        perform vanilla.refuse('VS429', 'the channel is full', jsonb_build_object('limit', v_channel.max_messages, 'used', v_channel.last_seq, 'resets_at', null), 'Open another one.');
    elsif v_channel.floor_policy is not null and v_channel.floor_holder is distinct from p_participant_id then
        perform vanilla.refuse('VS409', 'another participant has the floor', jsonb_build_object('floor_holder', v_channel.floor_holder), 'Wait for it, or ask for it with channel_floor.');
    end if;
    if p_in_reply_to is not null then
        select * into v_replied from public.channel_messages m where m.tenant_id = v_participant.tenant_id and m.channel_id = v_channel.id and m.seq = p_in_reply_to;
        if not found then perform vanilla.refuse('VS404', 'there is no message to reply to', jsonb_build_object('param', 'in_reply_to', 'seq', p_in_reply_to)); end if;
    end if;
    if v_channel.agreement_id is not null then
        select * into v_agreement from public.protocol_agreements a where a.tenant_id = v_participant.tenant_id and a.id = v_channel.agreement_id;
        if v_agreement.version <> v_version or vanilla.agreement_state(v_agreement) <> 'active' then      -- it changed meanwhile
            v_terms := vanilla.binding_terms(v_agreement);
            v_breach := vanilla.schema_breach(v_terms, p_performative, p_body);
        end if;
        if p_in_reply_to is not null then
            select * into v_root from public.channel_messages m where m.tenant_id = v_participant.tenant_id and m.channel_id = v_channel.id and m.seq = v_replied.conversation;
        end if;
        v_breach := coalesce(vanilla.agreement_breach(v_terms, v_channel, v_participant.party, p_performative, v_replied, v_root, v_now),
            case when v_breach ->> 'path' is not null then v_breach end);
        if v_breach is not null then
            return vanilla.record_violation(v_agreement, v_terms -> 'limits', v_channel.id, v_participant, p_performative, v_breach);
        end if;
        v_ends := vanilla.act_ends(v_terms -> 'acts' -> p_performative);
        if v_ends and p_in_reply_to is not null then
            update public.channel_messages m set ended_by = v_channel.last_seq + 1
                where m.tenant_id = v_participant.tenant_id and m.channel_id = v_channel.id and m.seq = v_replied.conversation;
        end if;
        v_channel.open_conversations := v_channel.open_conversations + case when v_ends = (p_in_reply_to is not null) then case when v_ends then -1 else 1 end else 0 end;
    end if;
    v_channel.last_seq := v_channel.last_seq + 1;
    insert into public.channel_messages (tenant_id, channel_id, seq, sender_id, user_id, performative, body, message_id, in_reply_to, conversation, ended_by, run_id, created_at)
        values (v_participant.tenant_id, v_channel.id, v_channel.last_seq, v_participant.id, v_participant.user_id, p_performative, p_body, p_message_id, p_in_reply_to,
            coalesce(v_replied.conversation, v_channel.last_seq), case when v_ends and p_in_reply_to is null then v_channel.last_seq end, p_run_id, v_now);
    if v_channel.floor_policy is not null then
        v_channel := vanilla.give_floor(v_channel, vanilla.next_floor(v_channel, p_participant_id));
    end if;
    -- a commit with a notification waits for every other one: who waits for messages looks again for a while after each
    if v_channel.told_at < v_now - interval '50 milliseconds' then
        v_channel.told_at := v_now;
        perform pg_notify('vanilla_channels', v_channel.id::text);
    end if;
    update public.communication_channels c set last_seq = v_channel.last_seq, open_conversations = v_channel.open_conversations, told_at = v_channel.told_at,
            floor_holder = v_channel.floor_holder, floor_until = v_channel.floor_until
        where c.tenant_id = v_participant.tenant_id and c.id = v_channel.id;
    return jsonb_build_object('seq', v_channel.last_seq, 'replayed', false);
end
$f$;
comment on function public.channel_send(uuid, uuid, text, jsonb, text, bigint, uuid, uuid) is
    'Says something as a participant: {seq, replayed}; the same message_id and body again is the same message. What breaks the channel''s agreement is not sent: {seq: null, refused: {code: agreement_violated, rule, path, message, violations, suspended}} is the answer and no error, so that it is written down; commit it.';

create or replace function vanilla.fail_message(p_participant public.channel_participants, p_error text, p_retry_at timestamptz) returns text
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_sort = off as $f$
declare
    v_most smallint := (select c.max_attempts from public.communication_channels c where c.tenant_id = p_participant.tenant_id and c.id = p_participant.channel_id);
    v_first bigint;
    v_dead boolean := p_participant.attempts + 1 >= v_most;
begin
    select m.seq into v_first from public.channel_messages m where m.tenant_id = p_participant.tenant_id and m.channel_id = p_participant.channel_id
        and m.seq > p_participant.cursor_seq and m.sender_id <> p_participant.id order by m.seq limit 1;
    if v_dead then
        insert into public.channel_dead_letters (tenant_id, channel_id, participant_id, seq, user_id, attempts, error, created_at)
            values (p_participant.tenant_id, p_participant.channel_id, p_participant.id, v_first, p_participant.user_id, p_participant.attempts + 1, left(p_error, 500), vanilla.clock());
    end if;
    update public.channel_participants p set lease_token = null, lease_seq = null, lease_until = case when not v_dead then p_retry_at end, last_error = left(p_error, 500),
            attempts = case when v_dead then 0 else p.attempts + 1 end, cursor_seq = case when v_dead then v_first else p.cursor_seq end
        where p.tenant_id = p_participant.tenant_id and p.id = p_participant.id;
    return case when v_dead then 'dead' else 'retry' end;
end
$f$;
comment on function vanilla.fail_message(public.channel_participants, text, timestamptz) is
    'The first message after the cursor of a locked participant failed: another attempt (retry), or a dead letter and the cursor goes on (dead).';

create or replace function public.channel_receive(p_channel_id uuid, p_participant_id uuid, p_limit integer default 50, p_lease interval default '60 s', p_tenant_id uuid default null)
returns table (lease_token uuid, lease_until timestamptz, attempt integer, seq bigint, sender_id uuid, performative text, body jsonb, message_id text, in_reply_to bigint,
    conversation bigint, run_id uuid, created_at timestamptz)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_sort = off as $f$
declare
    v_participant public.channel_participants := vanilla.speaking_participant(p_channel_id, p_participant_id, p_tenant_id);
    v_now timestamptz := vanilla.clock();
    v_token uuid := gen_random_uuid();
    v_last bigint;
begin
    if p_limit not between 1 and 1000 or p_limit is null or p_lease not between interval '0.01 s' and interval '1 day' or p_lease is null then
        perform vanilla.refuse('VS400', 'at once are 1 to 1,000 messages, for 10 ms to a day', '{"param": "limit"}');
    end if;
    -- whoever holds the row takes what there is
    select * into v_participant from public.channel_participants p where p.tenant_id = v_participant.tenant_id and p.id = p_participant_id for no key update skip locked;
    if not found or v_participant.lease_until > v_now then return; end if;
    if v_participant.lease_token is not null then
        perform vanilla.fail_message(v_participant, 'its lease ran out', null);
        select * into v_participant from public.channel_participants p where p.tenant_id = v_participant.tenant_id and p.id = p_participant_id;
    end if;
    select max(m.seq) into v_last from (select m.seq from public.channel_messages m where m.tenant_id = v_participant.tenant_id and m.channel_id = p_channel_id
        and m.seq > v_participant.cursor_seq and m.sender_id <> p_participant_id order by m.seq limit case when v_participant.attempts > 0 then 1 else p_limit end) m;
    if v_last is null then      -- only its own, as far as this looks
        select coalesce(min(m.seq) filter (where m.sender_id <> p_participant_id) - 1, max(m.seq)) into v_last from (
            select m.seq, m.sender_id from public.channel_messages m where m.tenant_id = v_participant.tenant_id and m.channel_id = p_channel_id
            and m.seq > v_participant.cursor_seq order by m.seq limit 1000) m;
        update public.channel_participants p set cursor_seq = v_last where p.tenant_id = v_participant.tenant_id and p.id = p_participant_id and v_last > p.cursor_seq;
        return;
    end if;
    update public.channel_participants p set lease_token = v_token, lease_until = v_now + p_lease, lease_seq = v_last
        where p.tenant_id = v_participant.tenant_id and p.id = p_participant_id;
    return query select v_token, v_now + p_lease, v_participant.attempts + 1, m.seq, m.sender_id, m.performative, m.body, m.message_id, m.in_reply_to, m.conversation, m.run_id, m.created_at
        from public.channel_messages m where m.tenant_id = v_participant.tenant_id and m.channel_id = p_channel_id and m.seq > v_participant.cursor_seq and m.seq <= v_last
          and m.sender_id <> p_participant_id order by m.seq;
end
$f$;
comment on function public.channel_receive(uuid, uuid, integer, interval, uuid) is
    'The next messages of others for a participant, in order, under a lease that nobody else has until it ends or all are acknowledged. None: there are none, or another worker has them. Once one has failed, one at a time.';

create or replace function vanilla.leased_participant(p_channel_id uuid, p_participant_id uuid, p_token uuid, p_tenant_id uuid) returns public.channel_participants
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_participant public.channel_participants := vanilla.speaking_participant(p_channel_id, p_participant_id, p_tenant_id);
begin
    select * into v_participant from public.channel_participants p where p.tenant_id = v_participant.tenant_id and p.id = p_participant_id for no key update;
    if v_participant.lease_token is distinct from p_token or p_token is null or v_participant.lease_until <= vanilla.clock() then
        perform vanilla.refuse('VS409', 'the lease has ended', '{"reason": "lease_lost"}', 'Undo what was done; the messages are given out again.');
    end if;
    return v_participant;
end
$f$;
comment on function vanilla.leased_participant(uuid, uuid, uuid, uuid) is 'A participant, locked, whose lease the caller has; VS409 when it has not, or no longer.';

create or replace function public.channel_ack(p_channel_id uuid, p_participant_id uuid, p_token uuid, p_seq bigint, p_tenant_id uuid default null) returns boolean
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan set enable_seqscan = off as $f$
declare
    v_participant public.channel_participants := vanilla.leased_participant(p_channel_id, p_participant_id, p_token, p_tenant_id);
begin
    if p_seq is null or p_seq > v_participant.lease_seq then
        perform vanilla.refuse('VS400', 'this was not given under the lease', jsonb_build_object('param', 'seq', 'until', v_participant.lease_seq));
    elsif p_seq <= v_participant.cursor_seq then
        return false;
    end if;
    update public.channel_participants p set cursor_seq = p_seq, attempts = 0, last_error = null, lease_token = case when p_seq < p.lease_seq then p.lease_token end,
            lease_until = case when p_seq < p.lease_seq then p.lease_until end, lease_seq = case when p_seq < p.lease_seq then p.lease_seq end
        where p.tenant_id = v_participant.tenant_id and p.id = p_participant_id;
    return true;
end
$f$;
comment on function public.channel_ack(uuid, uuid, uuid, bigint, uuid) is
    'Messages up to a seq are done with, and the lease when it is the last given. In the transaction of what they caused, that happens exactly once. False: they were already. VS409: the lease has ended, so the transaction must not commit.';

create or replace function public.channel_nack(p_channel_id uuid, p_participant_id uuid, p_token uuid, p_seq bigint, p_error text default '', p_retry_after interval default '0 s',
    p_tenant_id uuid default null) returns text
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_sort = off as $f$
declare
    v_participant public.channel_participants := vanilla.leased_participant(p_channel_id, p_participant_id, p_token, p_tenant_id);
    v_first bigint;
begin
    select m.seq into v_first from public.channel_messages m where m.tenant_id = v_participant.tenant_id and m.channel_id = p_channel_id
        and m.seq > v_participant.cursor_seq and m.sender_id <> p_participant_id order by m.seq limit 1;
    if p_seq is distinct from v_first then
        perform vanilla.refuse('VS400', 'what fails is the first message that is not acknowledged', jsonb_build_object('param', 'seq', 'first', v_first), 'Acknowledge those before it first.');
    elsif p_retry_after is null or p_retry_after not between interval '0 s' and interval '7 days' then
        perform vanilla.refuse('VS400', 'the next attempt is within 7 days', '{"param": "retry_after"}');
    end if;
    return vanilla.fail_message(v_participant, coalesce(nullif(p_error, ''), 'it failed'), case when p_retry_after > interval '0 s' then vanilla.clock() + p_retry_after end);
end
$f$;
comment on function public.channel_nack(uuid, uuid, uuid, bigint, text, interval, uuid) is
    'The first message that is not acknowledged failed, and the lease ends: retry, after p_retry_after, or dead after max_attempts, when the cursor goes on without it.';

create or replace function public.channel_floor(p_channel_id uuid, p_participant_id uuid, p_action text default 'read', p_to uuid default null, p_bid numeric default null,
    p_tenant_id uuid default null) returns jsonb
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $f$
declare
    v_participant public.channel_participants := vanilla.speaking_participant(p_channel_id, p_participant_id, p_tenant_id);
    v_channel public.communication_channels;
    v_gone boolean;
begin
    select * into v_channel from public.communication_channels c where c.tenant_id = v_participant.tenant_id and c.id = p_channel_id for no key update;
    v_gone := v_channel.floor_until <= vanilla.clock();
    if v_channel.floor_policy is null or v_channel.status = 'closed' then
        perform vanilla.refuse('VS409', 'the channel has no floor', jsonb_build_object('status', v_channel.status));
    elsif p_action = 'read' then
        null;
    elsif p_action = 'pass' and (v_channel.floor_holder = p_participant_id or v_gone) then
        v_channel := vanilla.give_floor(v_channel, vanilla.next_floor(v_channel, v_channel.floor_holder));
    elsif p_action in ('give', 'take') and v_channel.floor_policy = 'manager' and v_participant.manages then
        p_to := case when p_action = 'take' then p_participant_id else p_to end;
        if not exists (select from public.channel_participants p where p.tenant_id = v_channel.tenant_id and p.channel_id = v_channel.id and p.id = p_to) then
            perform vanilla.refuse('VS404', 'no such participant', jsonb_build_object('param', 'to', 'participant_id', p_to));
        end if;
        v_channel := vanilla.give_floor(v_channel, p_to);
    elsif p_action = 'bid' and v_channel.floor_policy = 'bid' and p_bid is not null then
        update public.channel_participants p set bid = p_bid where p.tenant_id = v_channel.tenant_id and p.id = p_participant_id;
        if v_channel.floor_holder is null or v_gone then
            v_channel := vanilla.give_floor(v_channel, vanilla.next_floor(v_channel, v_channel.floor_holder));
        end if;
    elsif p_action in ('pass', 'give', 'take', 'bid') then
        perform vanilla.refuse('VS409', format('%s is not for this participant now', p_action), jsonb_build_object('floor_policy', v_channel.floor_policy, 'floor_holder', v_channel.floor_holder));
    else
        perform vanilla.refuse('VS400', 'the action is read, pass, give, take or bid', '{"param": "action"}');
    end if;
    if p_action <> 'read' then
        update public.communication_channels c set floor_holder = v_channel.floor_holder, floor_until = v_channel.floor_until where c.tenant_id = v_channel.tenant_id and c.id = v_channel.id;
    end if;
    return jsonb_build_object('floor_policy', v_channel.floor_policy, 'floor_holder', v_channel.floor_holder, 'floor_until', v_channel.floor_until);
end
$f$;
comment on function public.channel_floor(uuid, uuid, text, uuid, numeric, uuid) is
    'Who has the floor of a group: read; pass it on, as its holder or when its holder''s time is over; give or take it, as the manager; bid for it. Every message passes it on.';

-- retention and erasure --------------------------------------------------------------------------------------------
create or replace function vanilla.drop_channels(p_tenant_id uuid, p_ids uuid[]) returns void
language sql volatile set search_path = pg_catalog, pg_temp as $f$
    delete from public.channel_dead_letters d where d.tenant_id = p_tenant_id and d.channel_id = any (p_ids);
    delete from public.channel_messages m where m.tenant_id = p_tenant_id and m.channel_id = any (p_ids);
    delete from public.channel_participants p where p.tenant_id = p_tenant_id and p.channel_id = any (p_ids);
    delete from public.communication_channels c where c.tenant_id = p_tenant_id and c.id = any (p_ids);
$f$;
comment on function vanilla.drop_channels(uuid, uuid[]) is 'Deletes locked channels with all that is in them.';

create or replace function vanilla.drop_agreements(p_tenant_id uuid, p_ids uuid[]) returns void
language sql volatile set search_path = pg_catalog, pg_temp as $f$
    delete from public.agreement_violations v where v.tenant_id = p_tenant_id and v.agreement_id = any (p_ids);
    delete from public.agreement_acceptances c where c.tenant_id = p_tenant_id and c.agreement_id = any (p_ids);
    delete from public.agreement_versions v where v.tenant_id = p_tenant_id and v.agreement_id = any (p_ids);
    delete from public.agreement_parties p where p.tenant_id = p_tenant_id and p.agreement_id = any (p_ids);
    delete from public.protocol_agreements a where a.tenant_id = p_tenant_id and a.id = any (p_ids);
$f$;
comment on function vanilla.drop_agreements(uuid, uuid[]) is 'Deletes locked agreements that no channel is bound to, with all that is theirs.';

create or replace function vanilla.prune_messages(p_tenant_id uuid, p_days integer, p_limit integer) returns integer
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off as $f$
declare
    v record;
    v_count integer;
    v_deleted integer := 0;
begin
    for v in select c.id, vanilla.clock() - make_interval(days => least(p_days, (g.terms #>> '{data,retention_days}')::integer)) as before,
                (select min(p.cursor_seq) from public.channel_participants p where p.tenant_id = c.tenant_id and p.channel_id = c.id and p.reads) as read_until
            from public.communication_channels c
            left join public.protocol_agreements a on a.tenant_id = c.tenant_id and a.id = c.agreement_id
            left join public.agreement_versions g on g.tenant_id = a.tenant_id and g.agreement_id = a.id and g.version = a.version
            where c.tenant_id = p_tenant_id order by c.id loop
        with old as (
            select m.seq from public.channel_messages m where m.tenant_id = p_tenant_id and m.channel_id = v.id and m.seq <= coalesce(v.read_until, 9223372036854775807)
                and m.created_at < v.before order by m.seq limit p_limit - v_deleted),
        letters as (
            delete from public.channel_dead_letters d using old where d.tenant_id = p_tenant_id and d.channel_id = v.id and d.seq = old.seq)
        delete from public.channel_messages m using old where m.tenant_id = p_tenant_id and m.channel_id = v.id and m.seq = old.seq;
        get diagnostics v_count = row_count;
        v_deleted := v_deleted + v_count;
        exit when v_deleted >= p_limit;
    end loop;
    return v_deleted;
end
$f$;
comment on function vanilla.prune_messages(uuid, integer, integer) is
    'Deletes messages of a tenant that every reader is past and that are older than so many days, or than their agreement''s data.retention_days.';

create or replace function vanilla.job_channels(p_limit integer) returns jsonb
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_days integer := vanilla.retention_days('channel_messages');
    v_before timestamptz := vanilla.clock() - make_interval(days => v_days);
    v_agreed timestamptz := vanilla.clock() - make_interval(days => vanilla.retention_days('agreements'));
    v_tenant uuid := vanilla.platform();
    v_ids uuid[];
    v_channels integer := 0;
    v_messages integer := 0;
    v_agreements integer := 0;
    v_expired integer := 0;
begin
    loop
        v_ids := array(select c.id from public.communication_channels c where c.tenant_id = v_tenant and c.closed_at < v_before
            order by c.id limit p_limit for update skip locked);
        perform vanilla.drop_channels(v_tenant, v_ids);
        v_channels := v_channels + cardinality(v_ids);
        v_messages := v_messages + vanilla.prune_messages(v_tenant, v_days, p_limit);
        v_ids := array(select a.id from public.protocol_agreements a where a.tenant_id = v_tenant and a.updated_at < v_agreed
            and a.status in ('rejected', 'withdrawn', 'terminated', 'expired')
            and not exists (select from public.communication_channels c where c.tenant_id = a.tenant_id and c.agreement_id = a.id)
            order by a.id limit p_limit for update skip locked);
        perform vanilla.drop_agreements(v_tenant, v_ids);
        v_agreements := v_agreements + cardinality(v_ids);
        v_expired := v_expired + vanilla.agreement_expire_due(v_tenant, p_limit);      -- last: channels are locked before agreements
        exit when greatest(v_channels, v_messages, v_agreements) >= p_limit;
        select t.tenant_id into v_tenant from public.tenants t where t.tenant_id > v_tenant order by t.tenant_id limit 1;
        exit when not found;
    end loop;
    return jsonb_build_object('channels', v_channels, 'messages', v_messages, 'agreements', v_agreements, 'expired', v_expired,
        'more', greatest(v_channels, v_messages, v_agreements) >= p_limit);
end
$f$;
comment on function vanilla.job_channels(integer) is
    'Job: writes down which agreements have expired; deletes messages that all have read after retention.channel_messages_days, channels closed longer ago than that, and agreements that ended longer ago than retention.agreements_days and that no channel is bound to.';

create or replace function vanilla.forget_channels(p_user public.users) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $f$
declare
    v_ids uuid[];
    v_agreement public.protocol_agreements;
begin
    -- what nobody else took part in is theirs alone
    v_ids := array(select c.id from public.communication_channels c where c.tenant_id = p_user.tenant_id and c.user_id = p_user.id
        and not exists (select from public.channel_participants p where p.tenant_id = c.tenant_id and p.channel_id = c.id and p.user_id <> p_user.id) order by c.id for update);
    perform vanilla.drop_channels(p_user.tenant_id, v_ids);
    perform from public.communication_channels c where c.tenant_id = p_user.tenant_id and (c.user_id = p_user.id
        or exists (select from public.channel_participants p where p.tenant_id = c.tenant_id and p.channel_id = c.id and p.user_id = p_user.id)) order by c.id for no key update;
    update public.communication_channels c set name = 'erased', close_reason = null, status = 'closed', closed_at = coalesce(c.closed_at, vanilla.clock()), floor_holder = null, floor_until = null
        where c.tenant_id = p_user.tenant_id and c.user_id = p_user.id;
    update public.channel_messages m set body = null, message_id = 'erased-' || m.seq where m.tenant_id = p_user.tenant_id and m.user_id = p_user.id;
    update public.channel_participants p set name = 'erased-' || p.place, lease_token = null, lease_seq = null, lease_until = null, last_error = null, reads = false
        where p.tenant_id = p_user.tenant_id and p.user_id = p_user.id;
    update public.agreement_violations v set path = '', message = 'erased' where v.tenant_id = p_user.tenant_id and v.user_id = p_user.id;
    update public.channel_dead_letters d set error = 'erased' where d.tenant_id = p_user.tenant_id and d.user_id = p_user.id;
    for v_agreement in select a.* from public.protocol_agreements a where a.tenant_id = p_user.tenant_id and exists (
            select from public.agreement_parties p where p.tenant_id = a.tenant_id and p.agreement_id = a.id and p.user_id = p_user.id) order by a.id for update loop
        update public.protocol_agreements a set name = 'erased', reason = null
            where a.tenant_id = v_agreement.tenant_id and a.id = v_agreement.id and a.user_id = p_user.id;
        if v_agreement.status in ('proposed', 'active', 'suspended') then
            perform vanilla.move_agreement(v_agreement, 'terminated', null, 'a party was erased');
        end if;
        if not exists (select from public.agreement_parties p where p.tenant_id = v_agreement.tenant_id and p.agreement_id = v_agreement.id and p.user_id <> p_user.id)
           and not exists (select from public.communication_channels c where c.tenant_id = v_agreement.tenant_id and c.agreement_id = v_agreement.id) then
            perform vanilla.drop_agreements(v_agreement.tenant_id, array[v_agreement.id]);
        end if;
    end loop;
end
$f$;
comment on function vanilla.forget_channels(public.users) is
    'Deletes the channels and agreements of an erased user in which nobody else took part; elsewhere what they said and were called, and ends what they had agreed on.';

grant execute on function public.agreement_propose(text, jsonb, text, jsonb, uuid, uuid), public.agreement_respond(uuid, text, bytea, text, jsonb, uuid),
    public.agreement_amend(uuid, text, jsonb, uuid), public.agreement_withdraw(uuid, text, uuid), public.agreement_suspend(uuid, text, text, uuid),
    public.agreement_resume(uuid, text, uuid), public.agreement_terminate(uuid, text, text, uuid), public.agreement_read(uuid, uuid), public.my_agreements(uuid),
    public.channel_open(text, text, jsonb, uuid, jsonb, uuid, uuid), public.channel_history(uuid, bigint, integer, uuid), public.channel_read(uuid, uuid),
    public.my_channels(uuid), public.channel_close(uuid, text, uuid), public.channel_send(uuid, uuid, text, jsonb, text, bigint, uuid, uuid),
    public.channel_receive(uuid, uuid, integer, interval, uuid), public.channel_ack(uuid, uuid, uuid, bigint, uuid),
    public.channel_nack(uuid, uuid, uuid, bigint, text, interval, uuid), public.channel_floor(uuid, uuid, text, uuid, numeric, uuid) to vanilla_app, vanilla_operator;

-- what is there from the first day ---------------------------------------------------------------------------------
set local role vanilla_system;
insert into public.system_configurations (tenant_id, key, value, description, updated_at) values
    (vanilla.platform(), 'retention.channel_messages_days', '90', 'Days that messages of channels are kept once all have read them, and channels after they were closed.', '2026-01-01+00'),
    (vanilla.platform(), 'retention.agreements_days', '365', 'Days that agreements are kept after their end.', '2026-01-01+00')
on conflict do nothing;
insert into public.schedules (tenant_id, name, description, kind, period, slots_from, next_run_at, longest_gap) values
    (vanilla.platform(), 'channels', 'Deletes messages, channels and agreements that are past retention; writes down which agreements expired.', 'sql', '1 hour',
     '2026-01-01 00:55+00', '2026-01-01 00:55+00', null)
on conflict do nothing;

set local role vanilla_owner;
revoke create on schema vanilla from vanilla_definer;
select vanilla.map_supabase_roles();      -- without 010 too
reset role;
revoke create on schema public from vanilla_definer;
commit;
