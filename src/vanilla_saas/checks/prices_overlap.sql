-- Two prices of one level, cycle and currency hold at the same time, so which of them is meant is chance.
-- Mend: End one of them: vanilla-saas levels end-price <price>
select a.tenant_id, a.level_id, a.cycle, a.currency, a.id as price_id, b.id as other_price_id
from public.level_pricing a
join public.level_pricing b on b.tenant_id = a.tenant_id and b.level_id = a.level_id and b.cycle = a.cycle
    and b.currency = a.currency and b.id > a.id and b.valid_from < a.valid_until and b.valid_until > a.valid_from
