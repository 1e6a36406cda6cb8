"""Mutants that nothing in this suite sees, and why each may live. A name that is caught again fails the suite too."""

SURVIVORS: dict[str, str] = {
    "refusal: vanilla.redeem_one_time_token: perform vanilla.refuse('VS411', 'the link is used up or too (1)":
        "without a link there is no user either, and the next line refuses in the same words",
    "status check: vanilla.settle_call: status = 'abandoned'":
        "an expired hold's execution has that row and no other; settled twice is refused before",
    "tenant comparison: vanilla.fold_due_wallets: t.tenant_id = t.id": "tenants_self_check: they are the same",
    "refusal: vanilla.refuse: raise exception '%', p_message using errcode = p_sqlstate, d (1)":
        "the other branch raises the same with an empty hint, which is none",
    "status check: vanilla.admit_call: status = 'active' (6)":
        "the second look, after a lock that two first calls of one user meet at: tests/concurrency",
    "refusal: public.release_token_hold: perform vanilla.refuse('VS404', 'no such hold', jsonb_build_":
        "no case here names a hold that is not there: tests/tokens/test_holds.py does",
    "status check: vanilla.admit_call: status <> 'active' (1)":
        "one that another first call made a moment ago: tests/concurrency/test_wallet.py",
    "status check: vanilla.lock_calls: x.state = 'open'":
        "locks more than it needs; the state is asked again under the lock",
    "status check: vanilla.run_operations: x.state = 'open'":
        "locks more than it needs; the state is asked again under the lock",
    "tenant comparison: vanilla.close_periods: p.tenant_id = d.tenant_id (1)":
        "one more row of the same policy or grant: keys are distinct, and rows are written by their own key",
    "tenant comparison: vanilla.close_periods: x.tenant_id = d.tenant_id":
        "wakes a wallet before its time: folding finds nothing due",
    "status check: vanilla.keep_an_admin: status = 'active' (1)":
        "locks more than it needs; the state is asked again under the lock",
    "tenant comparison: vanilla.assign_level: p.tenant_id = p_tenant_id":
        "the lock on a policy that the next look-up finds by its tenant: tests/concurrency/test_tenancy_races.py",
    "tenant comparison: vanilla.hold_tenant: x.tenant_id = t.tenant_id":
        "no case here names a hold by its id alone: the operator does in tests/tokens",
    "tenant comparison: vanilla.hold_replay: h.tenant_id = p_tenant_id":
        "asked with the id of a hold found in the tenant before: tests/tokens/test_holds.py",
    "tenant comparison: public.set_level: l.tenant_id = v_tenant (1)":
        "whether the tenant has a default level: every tenant here has one",
    "owner comparison: public.undo_level_change: c.user_id = v_user.id (2)":
        "the detail of a refusal: tests/levels/test_changes.py reads it",
    "tenant comparison: public.undo_level_change: c.tenant_id = v_user.tenant_id (2)":
        "the detail of a refusal: a user has changes in their tenant only, but beside the twin",
    "refusal: vanilla.plan_level_change: perform vanilla.refuse('VS409', format('the user is on the l":
        "no path leads from a level to itself, and the next refusal has the same code",
    "status check: vanilla.begin_level_change: c.state = 'scheduled'": "locks more policies than it needs",
    "tenant comparison: vanilla.begin_level_change: c.tenant_id = p_user.tenant_id":
        "locks more policies than it needs, of the tenant's own",
    "tenant comparison: vanilla.begin_level_change: p.tenant_id = p_user.tenant_id":
        "locks more policies than it needs",
    "tenant comparison: vanilla.begin_level_change: s.tenant_id = p_user.tenant_id":
        "locks more policies than it needs, of the tenant's own",
    "tenant comparison: vanilla.begin_level_change: w.tenant_id = p_user.tenant_id":
        "locks more than it needs; the wallet is read again by its whole key",
    "status check: vanilla.begin_level_change: v_wallet.status = 'closed'":
        "what it then calls asks again: an open wallet passes",
    "tenant comparison: public.set_upgrade_path: l.tenant_id = v_tenant (1)": "locks more levels than it needs",
    "tenant comparison: public.set_upgrade_path: l.tenant_id = v_tenant (3)":
        "the slug in a refusal, which the twin's level has too",
    "tenant comparison: vanilla.plan_level_change: c.tenant_id = p_user.tenant_id (2)":
        "the detail of a refusal: a user has one scheduled change in their tenant only, but beside the twin",
    "tenant comparison: vanilla.plan_level_change: l.tenant_id = p_user.tenant_id (2)":
        "of the level that is left only id and slug are read, and the twin's has the same",
    "tenant comparison: vanilla.job_level_changes: t.tenant_id = t.id": "tenants_self_check: they are the same",
    "status check: vanilla.assign_level: v_wallet.status = 'closed'":
        "what it then calls asks again: an open wallet passes",
    "tenant comparison: vanilla.copy_level_terms: l.tenant_id = r.tenant_id":
        "the platform's levels here have no restrictions to copy",
    "tenant comparison: vanilla.copy_level_terms: n.tenant_id = p_tenant_id (2)":
        "the platform's levels here have no restrictions to copy",
    "tenant comparison: public.begin_checkout: c.tenant_id = v_tenant (1)":
        "locks more than it needs",
    "status check: vanilla.finish_top_up: p.state = 'pending' (1)": "asked again under the lock",
    "status check: vanilla.finish_top_up: p.state = 'pending' (2)":
        "asked before the lock too: between the two only another answer comes, tests/payments/test_top_ups.py",
    "tenant comparison: vanilla.finish_top_up: p.tenant_id = p_tenant_id (1)": "asked again under the lock",
    "tenant comparison: vanilla.claim_top_ups: n.tenant_id = t.tenant_id":
        "tenants_self_check: the other column is the same",
    "tenant comparison: vanilla.give_tokens: g.tenant_id = v_user.tenant_id (3)":
        "asked with an id made the line before",
    "tenant comparison: vanilla.give_tokens: tenant_id = v_user.tenant_id (5)": "asked with an id made before",
    "status check: vanilla.job_payments: p.state = 'open'": "the look inside asks the same",
    "status check: vanilla.job_payments: q.state = 'open'": "the update asks the same",
    "status check: vanilla.take_tokens_back: g.state = 'active'":
        "a purchase that is not active has nothing left: it never lapses, and voiding by hand takes all",
    "tenant comparison: vanilla.apply_payment: p.tenant_id = v_customer.tenant_id":
        "the account beside it is the tenant's own; in the platform's, ids are random and the user is compared",
    "tenant comparison: vanilla.apply_subscription: v_before.tenant_id <> v_customer.tenant_id":
        "the users compared beside it have ids that no two tenants share",
    "tenant comparison: vanilla.follow_subscription: l.tenant_id = s.tenant_id":
        "of another tenant's level with this id nothing but the id is read",
    "tenant comparison: vanilla.job_payments: s.account_tenant_id = c.account_tenant_id": "the loop inside compares it",
    "tenant comparison: vanilla.job_payments: s.account_tenant_id = v_customer.account_tenant_id":
        "the look outside compares it",
    "tenant comparison: vanilla.job_payments: s.tenant_id = c.tenant_id":
        "the account compared beside it is the tenant's own",
    "tenant comparison: vanilla.job_payments: s.tenant_id = v_customer.tenant_id":
        "the account compared beside it is the tenant's own",
    "tenant comparison: vanilla.top_up_json: c.tenant_id = p_payment.tenant_id":
        "the account compared beside it is the tenant's own",
    "refusal: public.delete_level: perform vanilla.refuse('VS409', format('a user joined the le":
        "a race that one session does not have",
    "tenant comparison: public.delete_level: r.tenant_id = v_level.tenant_id":
        "the levels that are deleted here have no restrictions",
    "tenant comparison: vanilla.copy_level_terms: l.tenant_id = p.tenant_id (1)":
        "no level of another tenant has the id of one of the platform's",
    "status check: public.set_user_role: status <> 'deleted'":
        "find_user refuses before; this look is for who is erased meanwhile: tests/concurrency/test_erasure_races.py",
    "status check: public.set_user_status: status <> 'deleted'":
        "find_user refuses before; this look is for who is erased meanwhile: tests/concurrency/test_erasure_races.py",
    "status check: public.set_user_password: status <> 'deleted'":
        "find_user refuses before; this look is for who is erased meanwhile: tests/concurrency/test_erasure_races.py",
    "status check: vanilla.hold_open: status <> 'deleted'":
        "find_user refuses before; this look is for who is erased meanwhile: tests/concurrency/test_erasure_races.py",
    "status check: vanilla.erase_person: u.status <> 'deleted'":
        "every caller has found the user; two who erase at once meet here: tests/concurrency/test_erasure_races.py",
    "status check: vanilla.finish_sign_in: t.status = 'active'":
        "asked twice, the second time for a tenant that was closed meanwhile: tests/concurrency/test_tenancy_races.py",
    "status check: vanilla.finish_sign_in: status = 'active' (3)":
        "asked twice, the second time for a tenant that was closed meanwhile: tests/concurrency/test_tenancy_races.py",
}  # fmt: skip
