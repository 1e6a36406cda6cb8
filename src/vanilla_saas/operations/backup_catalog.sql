-- What protects and computes, by name and a digest of its definition: two databases are compared by it.
-- Of constraints the parentheses are left out: PostgreSQL prints others after a dump.
with ours as (
    select n.oid, n.nspname from pg_namespace n where n.nspname !~ '^pg_' and n.nspname <> 'information_schema'),
relations as (
    select c.*, format('%I.%I', n.nspname, c.relname) as name from pg_class c join ours n on n.oid = c.relnamespace
    where not (n.nspname = 'vanilla' and c.relname like 'context\_keys%')),
found (kind, name, definition) as (
    select 'relation', r.name, concat_ws(' ', r.relkind, pg_get_userbyid(r.relowner), r.relrowsecurity, r.relforcerowsecurity,
        pg_get_expr(r.relpartbound, r.oid), array_to_string(array(
            select concat_ws(' ', a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, pg_get_expr(d.adbin, d.adrelid))
            from pg_attribute a left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
            where a.attrelid = r.oid and a.attnum > 0 and not a.attisdropped order by a.attnum), ','))
    from relations r where r.relkind in ('r', 'p', 'v', 'm', 'S', 'f')
    union all
    select 'index', r.name, pg_get_indexdef(r.oid) from relations r where r.relkind in ('i', 'I')
    union all
    select 'constraint', r.name || ' ' || k.conname, translate(pg_get_constraintdef(k.oid), '()', '')
    from pg_constraint k join relations r on r.oid = k.conrelid where k.contype <> 'n'
    union all
    select 'policy', r.name || ' ' || p.polname, concat_ws(' ', p.polpermissive, p.polcmd,
        array_to_string(array(select case o when 0 then 'public' else pg_get_userbyid(o) end collate "C" from unnest(p.polroles) o order by 1), ','),
        pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid))
    from pg_policy p join relations r on r.oid = p.polrelid
    union all
    select 'grant', r.name || coalesce(' ' || g.attname, ''), string_agg(concat_ws(' ',
        case g.grantee when 0 then 'public' else pg_get_userbyid(g.grantee) end, g.privilege_type, g.is_grantable), ',' order by g.grantee::regrole::text collate "C", g.privilege_type)
    from relations r cross join lateral (
        select null as attname, x.grantee, x.privilege_type, x.is_grantable from aclexplode(coalesce(r.relacl, acldefault(case r.relkind when 'S' then 's' else 'r' end::"char", r.relowner))) x
        union all
        select a.attname, x.grantee, x.privilege_type, x.is_grantable from pg_attribute a cross join lateral aclexplode(a.attacl) x
        where a.attrelid = r.oid and a.attnum > 0 and not a.attisdropped) g
    where r.relkind in ('r', 'p', 'v', 'm', 'S', 'f')
    group by r.name, g.attname
    union all
    select 'function', p.oid::regprocedure::text, concat_ws(' ', pg_get_userbyid(p.proowner), p.prosecdef, p.provolatile,
        p.proconfig::text, case p.prokind when 'a' then '' else pg_get_functiondef(p.oid) end)
    from pg_proc p join ours n on n.oid = p.pronamespace
    union all
    select 'grant', p.oid::regprocedure::text, string_agg(concat_ws(' ',
        case x.grantee when 0 then 'public' else pg_get_userbyid(x.grantee) end, x.is_grantable), ',' order by x.grantee::regrole::text collate "C")
    from pg_proc p join ours n on n.oid = p.pronamespace
    cross join lateral aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) x
    group by p.oid
    union all
    select 'trigger', r.name || ' ' || t.tgname, concat_ws(' ', pg_get_triggerdef(t.oid), t.tgenabled)
    from pg_trigger t join relations r on r.oid = t.tgrelid where not t.tgisinternal
    union all
    select 'schema', n.nspname, pg_get_userbyid(s.nspowner) || coalesce(' ' || (select string_agg(concat_ws(' ',
        case x.grantee when 0 then 'public' else pg_get_userbyid(x.grantee) end, x.privilege_type), ',' order by x.grantee::regrole::text collate "C", x.privilege_type)
        from aclexplode(s.nspacl) x where x.grantee <> s.nspowner), '')
    from ours n join pg_namespace s on s.oid = n.oid)
select kind || ' ' || name as object, encode(sha256(convert_to(definition, 'UTF8')), 'hex') as sha256 from found order by 1
