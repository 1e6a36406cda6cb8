-- A retention setting is missing or not valid, so nothing that it is for is removed, or something other than was meant.
-- Mend: Write it again as a row of the platform; docs/design/operations.md lists keys and values.
select k.key, s.value, format('insert into public.system_configurations (tenant_id, key, value) values (%L, %L, %L)'
    ' on conflict (tenant_id, key) do update set value = excluded.value', vanilla.platform(), k.key, k.usual) as mend
from (values ('retention.ai_executions_days', '90', 7), ('retention.audit_logs_days', '365', 365), ('retention.events_days', '365', 7),
             ('retention.webhook_deliveries_days', '30', 7), ('retention.sign_ins_days', '30', 7),
             ('retention.worker_event_logs_days', '90', 7), ('retention.routing_metrics_days', '30', 7), ('retention.routing_decisions_days', '30', 7),
             ('retention.engine_executions_days', '90', 7), ('retention.channel_messages_days', '90', 7), ('retention.agreements_days', '365', 7),
             ('retention.usage_events_days', '7', 7), ('retention.resource_performance_metrics_days', '90', 7), ('retention.system_metrics_days', '30', 7),
             ('retention.whole_months', 'false', null), ('retention.export', 'false', null)) k (key, usual, least)
left join public.system_configurations s on s.tenant_id = vanilla.platform() and s.key = k.key
where case
    when s.value is null then true
    when k.least is null then jsonb_typeof(s.value) <> 'boolean'
    when jsonb_typeof(s.value) <> 'number' then true
    else (s.value #>> '{}')::numeric not between k.least and 36500 or (s.value #>> '{}')::numeric % 1 <> 0 end
