-- A role of ours is a member of another role and so acts with its rights; only vanilla_owner joins the deciding roles.
-- Mend: Revoke the membership.
select m.member::regrole::text as role, m.roleid::regrole::text as member_of,
    format('revoke %s from %s granted by %s', m.roleid::regrole, m.member::regrole, m.grantor::regrole) as mend
from pg_auth_members m
where m.member::regrole::text in ('vanilla_owner', 'vanilla_definer', 'vanilla_system', 'vanilla_keyring', 'vanilla_operator',
                                  'vanilla_app', 'vanilla_runtime', 'vanilla_readonly')
  and not (m.member::regrole::text = 'vanilla_owner'
           and m.roleid::regrole::text in ('vanilla_definer', 'vanilla_system', 'vanilla_keyring'))
