-- A webhook delivery has been due for more than an hour: nobody sends, or its senders stop before they record.
-- Mend: Start vanilla-saas serve with VANILLA_SAAS_SEND_WEBHOOKS on; its log says why deliveries are not recorded.
select d.tenant_id, d.endpoint_id, count(*) as deliveries, min(d.next_attempt_at) as due_since
from public.webhook_deliveries d
join public.webhook_endpoints e on e.tenant_id = d.tenant_id and e.id = d.endpoint_id and e.status = 'active'
join public.tenants t on t.tenant_id = d.tenant_id and t.id = d.tenant_id and t.status = 'active'
where d.state in ('pending', 'failed') and d.next_attempt_at < vanilla.clock() - interval '1 hour'
    -- of a task the second waits for the first
    and (e.execution_id is null or not exists (
        select from public.webhook_deliveries o
        where o.tenant_id = d.tenant_id and o.endpoint_id = d.endpoint_id and o.state in ('pending', 'failed') and o.id < d.id))
group by d.tenant_id, d.endpoint_id
