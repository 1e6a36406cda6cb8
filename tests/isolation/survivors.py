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
    "status check: vanilla.lock_calls: x.state = 'open'":
        "locks more than it needs; the state is asked again under the lock",
    "status check: vanilla.run_operations: x.state = 'open'":
        "locks more than it needs; the state is asked again under the lock",
    "tenant comparison: vanilla.claim_webhook_deliveries: t.id = e.tenant_id":
        "tenants_self_check: the other column is the same",
    "tenant comparison: vanilla.claim_webhook_deliveries: t.tenant_id = e.tenant_id":
        "tenants_self_check: the other column is the same",
    "tenant comparison: vanilla.close_periods: p.tenant_id = d.tenant_id (1)":
        "one more row of the same policy or grant: keys are distinct, and rows are written by their own key",
    "tenant comparison: vanilla.close_periods: t.id = d.tenant_id (2)":
        "tenants_self_check: the other column is the same",
    "tenant comparison: vanilla.close_periods: x.tenant_id = d.tenant_id":
        "wakes a wallet before its time: folding finds nothing due",
    "owner comparison: public.set_user_status: v_user.id = vanilla.claim(4)::uuid":
        "the admin here is the tenant's only one, whom the next line refuses to lose: tests/tenancy has two",
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
}  # fmt: skip
