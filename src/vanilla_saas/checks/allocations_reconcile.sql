-- An allocation disagrees with its steps or its children, or a tree with what its wallet holds for it.
-- Mend: Report it as a defect with the rows. release_token_hold(hold_id) of the root returns the tokens and ends the tree; the ledger is right.
select a.tenant_id, a.user_id, a.id as allocation_id, x.problem, x.expected, x.found
from public.resource_allocations a
cross join lateral (
    select coalesce(sum(h.amount) filter (where h.state = 'open'), 0)::bigint as held, coalesce(sum(h.settled - h.overrun), 0)::bigint as drawn,
        coalesce(sum(h.overrun), 0)::bigint as overrun
    from public.allocation_holds h where h.tenant_id = a.tenant_id and h.allocation_id = a.id) h
cross join lateral (
    select coalesce(sum(c.budget_tokens) filter (where c.state = 'open'), 0)::bigint as carved, coalesce(sum(c.spent_tokens) filter (where c.state <> 'open'), 0)::bigint as spent
    from public.resource_allocations c where c.tenant_id = a.tenant_id and c.parent_id = a.id) c
cross join lateral (values ('held is not the sum of its open steps', h.held, a.held_tokens),
    ('carved is not the sum of its open children', c.carved, a.carved_tokens),
    ('spent is not what its steps and its closed children spent', h.drawn + c.spent, a.spent_tokens),
    ('overrun is not the sum of its steps', h.overrun, a.overrun_tokens)) x (problem, expected, found)
where x.expected <> x.found
union all
select a.tenant_id, a.user_id, a.id, 'its wallet does not hold what its open nodes have not spent', t.unspent, h.amount
from public.resource_allocations a
join public.user_token_holds h on h.tenant_id = a.tenant_id and h.id = a.hold_id and h.state = 'open'
cross join lateral (
    select coalesce(sum(n.budget_tokens - n.carved_tokens - n.spent_tokens) filter (where n.state = 'open'), 0)::bigint as unspent
    from public.resource_allocations n where n.tenant_id = a.tenant_id and n.root_id = a.id) t
where h.amount <> t.unspent
union all
select a.tenant_id, a.user_id, a.id, 'its parent has ended', 0, 0
from public.resource_allocations a
join public.resource_allocations p on p.tenant_id = a.tenant_id and p.id = a.parent_id and p.state <> 'open'
where a.state = 'open'
union all
select a.tenant_id, a.user_id, a.id, 'its ledger rows do not say what its steps were charged', coalesce(h.settled, 0)::bigint, coalesce(l.taken, 0)::bigint
from public.resource_allocations a
cross join lateral (select sum(h.settled) as settled from public.allocation_holds h where h.tenant_id = a.tenant_id and h.allocation_id = a.id) h
left join (
    select r.tenant_id, h.allocation_id, -sum(r.amount + r.reserved_amount) as taken from public.user_token_ledger r
    join public.allocation_holds h on h.tenant_id = r.tenant_id and h.id = (r.metadata ->> 'allocation_hold')::uuid
    where r.metadata ? 'allocation_hold' and r.direction in ('settle', 'debt') group by r.tenant_id, h.allocation_id) l
    on l.tenant_id = a.tenant_id and l.allocation_id = a.id
where coalesce(h.settled, 0) <> coalesce(l.taken, 0)
