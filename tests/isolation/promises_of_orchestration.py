"""What the functions of 009 promise: who speaks as whom, who reads what, and what an agreement's parties may do."""

from tests.isolation.promises import Case

CH, P = "'{channel}'", "'{speaker}'"
SEND = "select channel_send(%s, %s, 'inform', '{}', 'new'%s) ->> 'seq'"
SENT = "(select count(*) from channel_messages where tenant_id = '{a}' and channel_id = '{channel}' and message_id = 'new') = %d"
HISTORY = f"select count(*) from channel_history({CH}%s)"
READ = f"select channel_read({CH}%s) ->> 'name'"
AG = "'{agreement}'"
STATUS = "(select status from protocol_agreements where tenant_id = '{a}' and id = '{agreement}') = '%s'"
ROW = "(select %s from communication_channels where tenant_id = '{a}' and id = '{channel}')"
READER = "(select %s from channel_participants where tenant_id = '{a}' and id = '{speaker}')"
PERSON = "update channel_participants set kind = 'user' where tenant_id = '{a}' and id = '{speaker}'"
OUTSIDE = "update channel_participants set user_id = '{admin}' where tenant_id = '{a}' and user_id = '{other}'"
ACK = f"select channel_ack({CH}, {P}, '{{word_lease}}', %s)"
NACK = f"select channel_nack({CH}, {P}, '{{word_lease}}', 1, 'no')"
RESPOND = f"select agreement_respond({AG}, '%s', decode('{{hash}}', 'hex'), '%s') ->> 'status'"
AMENDED = """insert into agreement_versions (tenant_id, agreement_id, version, terms, hash, proposed_by, user_id, proposed_at)
    select tenant_id, agreement_id, 2, terms, hash, 'first', user_id, now() from agreement_versions where tenant_id = '{a}' and agreement_id = '{agreement}' and version = 1;
    update protocol_agreements set open_version = 2 where tenant_id = '{a}' and id = '{agreement}';
    insert into agreement_acceptances (tenant_id, agreement_id, version, party, user_id, hash, accepted_at)
    select tenant_id, agreement_id, 2, party, user_id, hash, now() from agreement_acceptances where tenant_id = '{a}' and agreement_id = '{agreement}' and version = 1 and party = 'first'"""
SUSPENDED = "update protocol_agreements set status = 'suspended', suspended_by = 'second' where tenant_id = '{a}' and id = '{agreement}'"
ENDED = "update protocol_agreements set expires_at = vanilla.clock() where tenant_id = '{a}' and id = '{agreement}'"
OF_AGREEMENT = "tenant_id = '{a}' and agreement_id = '{agreement}'"
HELD = f"""insert into agreement_versions (tenant_id, agreement_id, version, terms, hash, proposed_by, user_id, proposed_at)
    select tenant_id, agreement_id, 2, t.terms, sha256(convert_to(t.terms::text, 'UTF8')), 'first', user_id, now() from agreement_versions v
    cross join lateral (select v.terms || '{{"acts": {{"inform": {{"opens": true, "replies": ["inform"]}}, "propose": {{}}}}, "sla": {{"max_latency_ms": 1}},
        "price": {{"max_tokens_per_task": 5}}, "gate": {{"kind": "regex", "acts": ["propose"], "field": "plan", "pattern": "^by"}}}}') t (terms)
    where {OF_AGREEMENT} and version = 1;
    insert into agreement_acceptances (tenant_id, agreement_id, version, party, user_id, hash, accepted_at)
    select a.tenant_id, a.agreement_id, 2, a.party, a.user_id, v.hash, now() from agreement_acceptances a join agreement_versions v using (tenant_id, agreement_id)
    where {OF_AGREEMENT} and a.version = 1 and v.version = 2;
    update agreement_versions set state = 'superseded', decided_at = now() where {OF_AGREEMENT} and version = 1;
    update agreement_versions set state = 'active', decided_at = now() where {OF_AGREEMENT} and version = 2;
    update protocol_agreements set version = 2 where tenant_id = '{{a}}' and id = '{{agreement}}';
    update channel_messages set ended_by = null where tenant_id = '{{a}}' and channel_id = '{{channel}}'"""
BROKEN = f"""(select count(*) from agreement_violations where {OF_AGREEMENT} and version = 2 and channel_id = {CH} and participant_id = {P} and rule = '%s') = 1
    and (select violations from protocol_agreements where tenant_id = '{{a}}' and id = '{{agreement}}') = 2 and """
# of A and of the twin: what is said on the channel is to be redacted, and every record of the run that waits says it too
KEPT = (
    ("workflow_executions", 'input = \'{"a": "secret words"}\'', "id in ('{asking_execution}', '{asked_execution}')"),
    ("workflow_steps", "output = '\"secret words\"'", "execution_id = '{asked_execution}'"),
    ("workflow_signals", "payload = '\"secret words\"'", "execution_id = '{asking_execution}'"),
    ("workflow_approvals", "prompt = 'secret words'", "execution_id = '{asking_execution}'"),
    ("workflow_approval_votes", "comment = 'secret words'", "approval_id = '{secret}'"),
    ("quality_gate_results", "feedback = 'secret words'", "execution_id = '{asking_execution}'"),
    ("agent_runs", "input = '\"secret words\"'", "id in ('{asking}', '{asked}')"),
    ("agent_run_steps", "result = '\"secret words\"'", "run_id in ('{asking}', '{asked}')"),
    ("agent_run_state", "value = '\"secret words\"'", "root_run_id = '{asking}'"),
    ("run_artifacts", "content = 'secret words'", "run_id = '{asking}'"),
    ("contract_calls", "task = '\"secret words\"'", "run_id = '{asking}'"),
    ("contract_bids", "plan = 'secret words'", "call_id in (select id from contract_calls where run_id = '{asking}')"),
    ("channel_messages", 'body = \'{"a": "secret words"}\'', "channel_id = '{channel}'"),
    ("channel_messages", "body = '\"secret words\"'", "channel_id = '{asking}'"),
    ("channel_dead_letters", "error = 'secret words'", "channel_id = '{channel}'"),
    ("channel_participants", "last_error = 'secret words'", "channel_id = '{channel}'"),
)
BOTH = "tenant_id in ('{a}', '{twin}')"
SECRET = (
    f"""
    insert into workflow_signals (tenant_id, execution_id, name, user_id, sent_at)
        select tenant_id, id, 'secret', user_id, now() from workflow_executions where id = '{{asking_execution}}' and {BOTH};
    insert into workflow_approvals (tenant_id, id, execution_id, node, user_id, title, approvers, quorum, status, decided_at, created_at)
        select tenant_id, '{{secret}}', id, 1, user_id, 'x', '{{role:admin}}', 1, 'approved', now(), now() from workflow_executions where id = '{{asking_execution}}' and {BOTH};
    insert into workflow_approval_votes (tenant_id, approval_id, user_id, decision, voted_at)
        select tenant_id, id, user_id, 'approved', now() from workflow_approvals where id = '{{secret}}' and {BOTH};
    insert into quality_gate_results (tenant_id, id, user_id, workflow_id, version, execution_id, gate, round, passed, score, threshold, created_at)
        select tenant_id, gen_random_uuid(), user_id, workflow_id, version, id, 'g', 1, true, 1, 1, now() from workflow_executions where id = '{{asking_execution}}' and {BOTH};
    insert into agent_run_state (tenant_id, root_run_id, key, user_id, version, run_id, updated_at)
        select tenant_id, id, 'secret', user_id, 1, id, now() from agent_runs where id = '{{asking}}' and {BOTH};
    insert into run_artifacts (tenant_id, run_id, user_id, name, media_type, content, created_at)
        select tenant_id, id, user_id, 'secret', 'text/plain', '', now() from agent_runs where id = '{{asking}}' and {BOTH};
    insert into contract_calls (tenant_id, id, user_id, run_id, n, task, rule, deadline_at, created_at)
        select distinct on (tenant_id) tenant_id, '{{secret}}', user_id, run_id, n, '{{}}', 'lowest', now(), now() from agent_run_steps where run_id = '{{asking}}' and {BOTH} order by tenant_id, n;
    insert into contract_bids (tenant_id, call_id, user_id, agent_id, version)
        select r.tenant_id, '{{secret}}', r.user_id, r.agent_id, r.version from agent_runs r where r.id = '{{asking}}' and {BOTH};
    insert into channel_messages (tenant_id, channel_id, seq, sender_id, user_id, performative, message_id, conversation, created_at)
        select tenant_id, '{{asking}}', 1, id, user_id, 'inform', 'chat', 1, now() from channel_participants where id = '{{speaker}}' and {BOTH};
    insert into channel_dead_letters (tenant_id, channel_id, participant_id, seq, user_id, attempts, error, created_at)
        select tenant_id, channel_id, id, 7777, user_id, 1, '', now() from channel_participants where id = '{{speaker}}' and {BOTH};
    update workflow_executions set status = 'succeeded', finished_at = now() where id in ('{{asking_execution}}', '{{asked_execution}}') and {BOTH};
    update communication_channels set status = 'closed', closed_at = vanilla.clock() - interval '1 year', floor_holder = null, floor_until = null where id = '{{channel}}' and {BOTH};
    """
    + "; ".join(f"update {table} set {what} where ({where}) and {BOTH}" for table, what, where in KEPT)
    + f""";
    update channel_messages set redact = '{{/a}}', execution_ids = array['{{asking_execution}}'::uuid] where channel_id = '{{channel}}' and {BOTH}"""
)
SAYS = (
    "(select count(*) from ("
    + " union all ".join(
        f"select '{table}' where exists (select from {table} t where ({where}) and tenant_id = '@' and to_jsonb(t)::text like '%secret words%')"
        for table, _, where in KEPT
    )
    + ") s)"
)
GONE = f"{SAYS.replace('@', '{a}')} = 0 and {SAYS.replace('@', '{twin}')} = {len(KEPT)}"
# A's is over and read; the twin's goes on, says something else, and has not been read
OVER = (
    SECRET
    + """; update communication_channels set closed_at = vanilla.clock() where id = '{channel}' and tenant_id = '{a}';
    update channel_messages set ended_by = null where channel_id = '{channel}';
    update channel_participants set cursor_seq = case when tenant_id = '{a}' then 3 else 0 end where channel_id = '{channel}';
    update channel_messages set seq = seq + 10, body = '{"a": "other words"}' where channel_id = '{channel}' and tenant_id = '{twin}';
    update agent_run_steps set arguments = '"other words"' where run_id = '{asking}' and tenant_id = '{a}';
    update communication_channels set status = 'open', closed_at = null where id = '{channel}' and tenant_id = '{twin}';
    update workflow_executions set status = 'running', finished_at = null where id = '{asking_execution}' and tenant_id = '{twin}'"""
)
GOES_ON = (
    OVER
    + """; update communication_channels set status = 'open', closed_at = null where id = '{channel}' and tenant_id = '{a}';
    update channel_messages set ended_by = seq where channel_id = '{channel}' and tenant_id = '{twin}'"""
)
NONE = SECRET + "; update channel_messages set redact = null where tenant_id = '{a}'"
TO_REDACT = f"update channel_messages set redact = '{{/a}}', execution_ids = '{{}}', body = '{{\"a\": 1}}' where channel_id = '{{channel}}' and {BOTH}"
NAMED = """(select count(*) from channel_messages where tenant_id = '{a}' and channel_id = '{channel}' and execution_ids = array['{asking_execution}'::uuid]) = 1
    and not exists (select from channel_messages where tenant_id = '{twin}' and channel_id = '{channel}' and execution_ids <> '{}')"""
LISTENS = TO_REDACT + "; update channel_participants set party = null where tenant_id = '{a}' and user_id = '{other}'"
ACTS = '{"acts": {"inform": {}}}'
PARTIES = """'{"first": "{user}", "second": "%s"}'"""

CASES = [
    # speaks
    Case("user", SEND % (CH, P, ""), "= (4)", then=SENT % 1),
    Case("service", SEND % (CH, P, ""), "= (4)"),
    Case("admin", SEND % (CH, P, ""), "= (4)"),
    Case("operator", SEND % (CH, P, ", p_tenant_id => '{a}'"), "= (4)"),
    Case("other", SEND % (CH, P, ""), "VS403", then=SENT % 0),
    Case("other", SEND % (CH, P, ""), "VS404", OUTSIDE),
    Case("admin", SEND % (CH, P, ""), "VS403", PERSON),
    Case("service", SEND % (CH, P, ""), "= (4)", PERSON),
    Case("user", SEND % (CH, P, ""), "= (4)", PERSON),
    Case("nobody", SEND % (CH, P, ""), "VS401"),
    Case("super", SEND % (CH, P, ""), "VS404"),
    Case("opened", SEND % (CH, P, ""), "= (4)"),
    Case("user", SEND % (CH, P, ", p_tenant_id => '{b}'"), "VS404"),
    Case("user", SEND % ("'{b_channel}'", P, ""), "VS404"),
    Case("user", SEND % (CH, "'{b_speaker}'", ""), "VS404"),
    Case("admin", SEND % ("'{b_channel}'", "'{b_speaker}'", ""), "VS404"),
    Case("user", SEND % (CH, P, ""), "VS409", f"update communication_channels set status = 'closed', closed_at = now() where tenant_id = '{{a}}' and id = {CH}"),
    Case("user", SEND % (CH, P, ""), "VS429", f"update communication_channels set max_messages = 3 where tenant_id = '{{a}}' and id = {CH}"),
    Case("user", SEND % (CH, P, ""), "VS409", SUSPENDED),
    Case("user", SEND % (CH, P, ""), "VS409", ENDED),
    Case("user", f"select channel_send({CH}, {P}, 'inform', '{{\"word\": 1}}', '{{word}}-1')", "VS410"),
    Case("user", f"select channel_send({CH}, {P}, 'cfp', '{{}}', 'new') #>> '{{refused,rule}}'", "= (performative)",
         then="(select violations from protocol_agreements where tenant_id = '{a}' and id = '{agreement}') = 2 and " + SENT % 0),
    Case("user", f"select channel_send({CH}, {P}, 'inform', '1', 'new') #>> '{{refused,rule}}'", "= (schema)"),
    Case("user", f"select channel_send({CH}, {P}, 'inform', '{{}}', 'new', 1) #>> '{{violated,rule}}'", "= (latency)", HELD, then=BROKEN % "latency" + SENT % 1),
    Case("user", f"select channel_send({CH}, {P}, 'propose', '{{\"price_tokens\": 6}}', 'new') #>> '{{refused,rule}}'", "= (price)", HELD, then=BROKEN % "price" + SENT % 0),
    Case("user", f"select channel_send({CH}, {P}, 'propose', '{{\"plan\": \"no\"}}', 'new') #>> '{{refused,rule}}'", "= (gate)", HELD, then=BROKEN % "gate" + SENT % 0),
    # receives
    Case("user", ACK % 1, "= (t)", then=READER % "cursor_seq = 1 and lease_token is null"),
    Case("user", ACK % 2, "VS400"),
    Case("other", ACK % 1, "VS403"),
    Case("nobody", ACK % 1, "VS401"),
    Case("user", ACK % 1, "VS409", "update channel_participants set lease_until = vanilla.clock() where tenant_id = '{a}' and id = '{speaker}'"),
    Case("user", ACK % 1, "VS409", "update channel_participants set lease_token = gen_random_uuid() where tenant_id = '{a}' and id = '{speaker}'"),
    Case("user", NACK, "= (retry)", then=READER % "cursor_seq = 0 and attempts = 1 and lease_token is null"),
    Case("user", NACK, "= (dead)", "update channel_participants set attempts = 4 where tenant_id = '{a}' and id = '{speaker}'",
         then=READER % "cursor_seq = 1 and attempts = 0" + " and (select count(*) from channel_dead_letters where tenant_id = '{a}' and participant_id = '{speaker}') = 1"),
    Case("other", NACK, "VS403"),
    Case("user", f"select count(*) from channel_receive({CH}, {P})", "= (0)"),
    Case("user", f"select count(*) from channel_receive({CH}, {P})", "= (2)", "update channel_participants set lease_token = null, lease_seq = null, lease_until = null where tenant_id = '{a}' and id = '{speaker}'"),
    Case("other", f"select count(*) from channel_receive({CH}, {P})", "VS403"),
    # read by
    *[Case(who, HISTORY % "", "= (3)") for who in ("user", "other", "admin", "service", "opened")],
    *[Case(who, READ % "", "= ({word})") for who in ("user", "other", "admin", "service")],
    Case("operator", HISTORY % ", p_tenant_id => '{a}'", "= (3)"),
    *[Case("other", statement % "", "VS404", OUTSIDE) for statement in (HISTORY, READ)],
    *[Case("nobody", statement % "", "VS401") for statement in (HISTORY, READ)],
    *[Case("super", statement % "", "VS404") for statement in (HISTORY, READ)],
    *[Case("admin", (statement % "").replace("{channel}", "{b_channel}"), "VS404") for statement in (HISTORY, READ)],
    Case("user", "select count(*) from my_channels()", "= (3)"),
    Case("other", "select count(*) from my_channels()", "= (2)", OUTSIDE.replace("'{admin}'", "'{admin}'") + " and channel_id = '{channel}'"),
    Case("admin", "select count(*) from my_channels()", "= (4)"),
    Case("nobody", "select count(*) from my_channels()", "VS401"),
    Case("user", "select count(*) from communication_channels", "= (2)"),
    Case("admin", "select count(*) from communication_channels", "= (4)"),
    Case("user", "select count(*) from channel_messages where user_id <> '{user}'", "= (0)"),
    # opened and closed
    Case("user", f"select channel_close({CH}, 'done')", "= (t)", then=ROW % "status = 'closed' and close_reason = 'done'"),
    Case("admin", f"select channel_close({CH})", "= (t)"),
    Case("other", f"select channel_close({CH})", "VS403"),
    Case("other", f"select channel_close({CH})", "VS404", OUTSIDE),
    Case("admin", "select channel_close('{b_channel}')", "VS404"),
    Case("user", """select channel_open('n', 'group', '[{"name": "x"}, {"name": "y", "user_id": "{other}"}]')""",
         then="(select count(*) from channel_participants p join communication_channels c on c.tenant_id = p.tenant_id and c.id = p.channel_id where c.tenant_id = '{a}' and c.name = 'n' and c.user_id = '{user}' and p.user_id in ('{user}', '{other}')) = 2"),
    Case("user", """select channel_open('n', 'group', '[{"name": "x"}, {"name": "y", "user_id": "{b_user}"}]')""", "VS404"),
    Case("user", """select channel_open('n', 'group', '[{"name": "x"}, {"name": "y"}]', '{b_agreement}')""", "VS404"),
    Case("user", """select channel_open('n', 'group', '[{"name": "x"}, {"name": "y"}]', '{agreement}')""", "VS404",
         "update agreement_parties set user_id = '{admin}' where tenant_id = '{a}' and user_id = '{user}'"),
    Case("user", """select channel_open('n', 'group', '[{"name": "x", "party": "second"}, {"name": "y"}]', '{agreement}')""", "VS400"),
    Case("user", """select channel_open('n', 'group', '[{"name": "x"}, {"name": "y"}]', '{agreement}')""", "VS409", SUSPENDED),
    Case("user", """select channel_open('n', 'group', '[{"name": "x"}, {"name": "y"}]', p_user_id => '{other}')""", "VS403"),
    Case("admin", """select channel_open('n', 'group', '[{"name": "x"}, {"name": "y"}]', p_user_id => '{b_user}')""", "VS404"),
    # agreed
    Case("user", f"select agreement_propose('n', {PARTIES % '{other}'}, 'first', '{ACTS}') ->> 'status'", "= (proposed)",
         then="(select count(*) from protocol_agreements where tenant_id = '{a}' and name = 'n' and user_id = '{user}' and status = 'proposed') = 1"),
    Case("user", f"select agreement_propose('n', {PARTIES % '{other}'}, 'second', '{ACTS}')", "VS400"),
    Case("user", f"select agreement_propose('n', {PARTIES % '{b_user}'}, 'first', '{ACTS}')", "VS404"),
    Case("other", f"select agreement_propose('n', {PARTIES % '{other}'}, 'first', '{ACTS}', '{{user}}')", "VS403"),
    Case("nobody", f"select agreement_propose('n', {PARTIES % '{other}'}, 'first', '{ACTS}')", "VS401"),
    Case("other", RESPOND % ("second", "accept"), "= (active)", AMENDED, then="(select version from protocol_agreements where tenant_id = '{a}' and id = '{agreement}') = 2",
         audit="agreement.active"),
    Case("service", RESPOND % ("second", "accept"), "= (active)", AMENDED),
    Case("user", RESPOND % ("second", "accept"), "VS403", AMENDED),
    Case("admin", RESPOND % ("second", "accept"), "VS403", AMENDED),
    Case("other", RESPOND % ("third", "accept"), "VS404", AMENDED),
    Case("other", RESPOND % ("second", "reject"), "= (active)", AMENDED, then="(select version from protocol_agreements where tenant_id = '{a}' and id = '{agreement}') = 1"),
    Case("other", RESPOND % ("second", "accept"), "VS409", AMENDED + "; update protocol_agreements set expires_at = vanilla.clock() where tenant_id = '{a}' and id = '{agreement}'"),
    Case("user", f"select agreement_amend({AG}, 'first', '{ACTS}') ->> 'version'", "= (2)"),
    Case("other", f"select agreement_amend({AG}, 'first', '{ACTS}')", "VS403"),
    Case("user", f"select agreement_withdraw({AG}, 'first') ->> 'status'", "= (active)", AMENDED),
    Case("other", f"select agreement_withdraw({AG}, 'second')", "VS409", AMENDED),
    *[Case(who, f"select agreement_suspend({AG}{party})", then=STATUS % "suspended", audit="agreement.suspended")
      for who, party in (("user", ", 'first'"), ("other", ", 'second'"), ("admin", ""), ("service", ""))],
    Case("user", f"select agreement_suspend({AG})", "VS404"),
    Case("user", f"select agreement_suspend({AG}, 'second')", "VS403"),
    Case("other", f"select agreement_resume({AG}, 'second')", given=SUSPENDED, then=STATUS % "active", audit="agreement.active"),
    Case("user", f"select agreement_resume({AG}, 'first')", "VS403", SUSPENDED),
    Case("admin", f"select agreement_resume({AG})", given=SUSPENDED, then=STATUS % "active"),
    Case("user", f"select agreement_terminate({AG}, 'first', 'over')", then=STATUS % "terminated", audit="agreement.terminated"),
    Case("admin", f"select agreement_terminate({AG})", then=STATUS % "terminated"),
    Case("admin", "select agreement_terminate('{b_agreement}')", "VS404"),
    Case("nobody", f"select agreement_terminate({AG})", "VS401"),
    *[Case(who, f"select agreement_read({AG}) ->> 'status'", "= (active)") for who in ("user", "other", "admin", "service")],
    Case("user", f"select agreement_read({AG}) ->> 'status'", "= (expired)", ENDED),
    Case("other", f"select agreement_read({AG})", "VS404", "update agreement_parties set user_id = '{admin}' where tenant_id = '{a}' and user_id = '{other}'"),
    Case("admin", "select agreement_read('{b_agreement}')", "VS404"),
    Case("user", "select count(*) from my_agreements()", "= (2)"),
    Case("other", "select count(*) from my_agreements()", "= (0)", "update agreement_parties set user_id = '{admin}' where tenant_id = '{a}' and user_id = '{other}'"),
    Case("admin", "select count(*) from my_agreements()", "= (2)"),
    # jobs, and an erased person
    Case("keeper", "select vanilla.job_channels(100) ->> 'expired'", "= (1)", ENDED, then=STATUS % "expired"),
    Case("keeper", "select vanilla.redact_messages('{a}', 90, 100)", "= (3)", SECRET, then=GONE),
    Case("keeper", "select vanilla.redact_messages('{a}', 90, 100)", "= (3)", OVER, then="exists (select from agent_run_steps where tenant_id = '{a}' and run_id = '{asking}' and arguments = '\"other words\"')"),
    Case("keeper", "select vanilla.redact_messages('{a}', 90, 100)", "= (0)", GOES_ON),
    Case("keeper", "select vanilla.redact_messages('{a}', 90, 100)", "= (0)", NONE),
    Case("keeper", "select vanilla.job_channels(100) ->> 'redacted'", "= (3)", OVER),
    *[Case("user", ACK % f"1, p_run_id => '{{{run}}}'", "= (t)", TO_REDACT, then=NAMED) for run in ("asking", "asked", "asking_execution")],
    *[Case("user", ACK % f"1, p_run_id => '{{{run}}}'", "VS404", TO_REDACT) for run in ("others_asking", "b_asking", "others_running")],
    Case("user", f"select body ->> 'a' from channel_history({CH}) limit 1", "= (1)", TO_REDACT),
    Case("other", f"select body ->> 'a' from channel_history({CH}) limit 1", "= (1)", TO_REDACT),
    Case("other", f"select body ->> 'a' from channel_history({CH}) limit 1", "= (***)", LISTENS),
    Case("admin", f"select body ->> 'a' from channel_history({CH}) limit 1", "= (1)", LISTENS),
    Case("admin", "select erase_user('{user}', 'asked')", then=STATUS % "terminated" + f" and {ROW % 'status'} = 'closed'"
         " and (select count(*) from channel_messages where tenant_id = '{a}' and user_id = '{user}' and body is not null) = 0"
         " and (select count(*) from channel_messages where tenant_id = '{a}' and user_id = '{other}' and body is not null) > 0"),
]  # fmt: skip
