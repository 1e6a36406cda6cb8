"""Mutants that nothing in this suite sees, and why each may live. A name that is caught again fails the suite too."""

SURVIVORS: dict[str, str] = {
    "refusal: public.delete_level: perform vanilla.refuse('VS409', format('a user joined the le":
        "a race that one session does not have",
    "refusal: vanilla.plan_level_change: perform vanilla.refuse('VS409', format('the user is on the l":
        "no path leads from a level to itself, and the next refusal has the same code",
    "refusal: vanilla.redeem_one_time_token: perform vanilla.refuse('VS411', 'the link is used up or too (1)":
        "without a link there is no user either, and the next line refuses in the same words",
    "refusal: vanilla.refuse: raise exception '%', p_message using errcode = p_sqlstate, d (1)":
        "the other branch raises the same with an empty hint, which is none",
    "refusal: vanilla.repair_protection: raise exception 'the protection of % does not settle', p_tab":
        "a guard against a rule that contradicts itself: none does",
    "status check: public.set_user_password: status <> 'deleted'":
        "find_user refuses before; this look is for who is erased meanwhile: tests/concurrency/test_erasure_races.py",
    "status check: public.set_user_role: status <> 'deleted'":
        "find_user refuses before; this look is for who is erased meanwhile: tests/concurrency/test_erasure_races.py",
    "status check: public.set_user_status: status <> 'deleted'":
        "find_user refuses before; this look is for who is erased meanwhile: tests/concurrency/test_erasure_races.py",
    "status check: vanilla.admit_call: status <> 'active' (1)":
        "one that another first call made a moment ago: tests/concurrency/test_wallet.py",
    "status check: vanilla.admit_call: status = 'active' (8)":
        "the second look, after a lock that two first calls of one user meet at: tests/concurrency",
    "status check: vanilla.finish_sign_in: status = 'active' (3)":
        "asked twice, the second time for a tenant that was closed meanwhile: tests/concurrency/test_tenancy_races.py",
    "status check: vanilla.finish_sign_in: t.status = 'active'":
        "asked twice, the second time for a tenant that was closed meanwhile: tests/concurrency/test_tenancy_races.py",
    "tenant comparison: public.set_upgrade_path: l.tenant_id = v_tenant (3)":
        "the slug in a refusal, which the twin's level has too",
    "tenant comparison: vanilla.apply_payment: p.tenant_id = v_customer.tenant_id":
        "the account beside it is the tenant's own; in the platform's, ids are random and the user is compared",
    "tenant comparison: vanilla.apply_subscription: v_before.tenant_id <> v_customer.tenant_id":
        "the users compared beside it have ids that no two tenants share",
    "tenant comparison: vanilla.claim_top_ups: n.tenant_id = t.tenant_id":
        "tenants_self_check: the other column is the same",
    "tenant comparison: vanilla.claim_webhook_deliveries: e.tenant_id = w.tenant_id":
        "who waits names an endpoint; that of another tenant is looked at once more, by its own deliveries",
    "tenant comparison: vanilla.close_periods: e.tenant_id = f.tenant_id":
        "two tenants due in one part: the delivery's key to its endpoint refuses the rest",
    "tenant comparison: vanilla.close_periods: p.tenant_id = d.tenant_id (1)":
        "one more row of the same policy or grant: keys are distinct, and rows are written by their own key",
    "tenant comparison: vanilla.close_periods: t.tenant_id = t.id": "tenants_self_check: they are the same",
    "tenant comparison: vanilla.finish_top_up: p.tenant_id = p_tenant_id (1)":
        "only the account to lock is read; asked again under the lock",
    "tenant comparison: vanilla.fold_due_wallets: t.tenant_id = t.id": "tenants_self_check: they are the same",
    "tenant comparison: vanilla.follow_subscription: l.tenant_id = s.tenant_id":
        "of another tenant's level with this id nothing but the id is read",
    "tenant comparison: vanilla.give_tokens: g.tenant_id = v_user.tenant_id (3)":
        "asked with an id made the line before",
    "tenant comparison: vanilla.give_tokens: tenant_id = v_user.tenant_id (5)": "asked with an id made before",
    "tenant comparison: vanilla.hold_tenant: x.tenant_id = t.tenant_id":
        "no case here names a hold by its id alone: the operator does in tests/tokens",
    "tenant comparison: vanilla.job_level_changes: t.tenant_id = t.id": "tenants_self_check: they are the same",
    "tenant comparison: vanilla.job_payments: s.account_tenant_id = v_customer.account_tenant_id":
        "the look outside compares it",
    "tenant comparison: vanilla.job_payments: s.tenant_id = v_customer.tenant_id":
        "the account compared beside it is the tenant's own",
    "tenant comparison: vanilla.plan_level_change: l.tenant_id = p_user.tenant_id (2)":
        "of the level that is left only id and slug are read, and the twin's has the same",
    "tenant comparison: vanilla.redact_messages: e.tenant_id = p_tenant_id (2)":
        "looks for one that is not held, and the id of another tenant's is",
    "tenant comparison: vanilla.redact_tree: e.tenant_id = p_tenant_id (2)": "gives ids, which no two tenants share",
    "tenant comparison: vanilla.redact_tree: e.tenant_id = p_tenant_id (3)": "gives ids, which no two tenants share",
    "tenant comparison: vanilla.redact_tree: r.tenant_id = p_tenant_id (1)": "gives ids, which no two tenants share",
    "tenant comparison: vanilla.retention_plan: s.tenant_id = vanilla.platform()":
        "a check of the table keeps these settings to the platform",
    "tenant comparison: vanilla.start_engine_turn: f.tenant_id = e.tenant_id":
        "a version of a workflow has one text in whatever tenant it was brought to, and so one budget",
    "tenant comparison: vanilla.top_execution: e.tenant_id = p_tenant_id (1)": "gives an id, the same of each tenant",
    "tenant comparison: vanilla.top_execution: e.tenant_id = p_tenant_id (2)": "gives an id, the same of each tenant",
    "tenant comparison: vanilla.top_up_json: c.tenant_id = p_payment.tenant_id":
        "the account compared beside it is the tenant's own",
    "tenant's row: vanilla.close_periods: t.tenant_id = d.tenant_id and t.id = d.tenant_id (1)":
        "more ends of periods than are needed: each stands under a key that has the zone in it",
    "tenant's row: vanilla.finish_sign_in: tenant_id = v_user.tenant_id and id = v_user.tenant_id":
        "asked twice, the second time for a tenant that was closed meanwhile: tests/concurrency/test_tenancy_races.py",
    "refusal: vanilla.own_allocation_hold: perform vanilla.refuse('VS404', 'no such hold', jsonb_build_":
        "the function that it was looked for refuses in the same words",
    "status check: vanilla.allocation_reap: h.state = 'open'": "release_allocation_holds looks again, under the lock",
    "status check: vanilla.drop_allocations: a.state = 'open'": "a guard: a root that has ended has nothing open",
    "status check: vanilla.drop_allocations: h.state = 'open' (1)":
        "a hold that outlives its root: tests/orchestration/test_allocations_retention.py",
    "status check: vanilla.drop_allocations: h.state = 'open' (2)": "a guard: steps end with their allocation",
    "status check: vanilla.drop_allocations: r.state <> 'open'": "what is open has no end, which is compared beside it",
    "status check: vanilla.grow_allocation: v_node.state = 'open'": "who lets it grow is refused a moment later",
    "tenant comparison: vanilla.grow_allocation: b.tenant_id = p_tenant_id (1)": "only ids come of it",
    "status check: vanilla.add_to_root: h.state = 'open'": "it ran out between two lines",
    "status check: vanilla.forget_allocations: a.state = 'open'": "allocation_end looks again, under the lock",
    "status check: vanilla.lock_subtree: a.state = 'open' (1)": "asked again when they are locked",
    "status check: vanilla.lock_subtree: a.state = 'open' (2)": "one that another session ended a moment ago",
    "status check: vanilla.lock_subtree: a.state = 'open' (3)": "one that another session ended a moment ago",
    "tenant comparison: vanilla.allocation_release: h.tenant_id = p_tenant_id (1)":
        "only its allocation's id is read, under which it is looked for again",
    "tenant comparison: vanilla.allocation_settle: h.tenant_id = p_tenant_id (1)":
        "only its allocation's id is read, under which it is looked for again",
    "tenant comparison: vanilla.forget_allocations: a.tenant_id = p_user.tenant_id (1)":
        "the same ids once more, looked for in the tenant",
    "status check: vanilla.lock_trees: a.state = 'open'": "more is locked than ends",
    "tenant comparison: vanilla.lock_trees: a.tenant_id = p_user.tenant_id":
        "the same ids once more, looked for in the tenant",
    "status check: vanilla.open_contracts: c.state = 'open'":
        "when a task is somebody's no bid for it is waited for: tests/orchestration/test_contracts.py",
    "tenant comparison: vanilla.open_contracts: c.tenant_id = r.tenant_id": "the twin's is due when its own is",
    "tenant comparison: vanilla.open_contracts: r.tenant_id = p_step.tenant_id": "the twin's is due when its own is",
    "tenant comparison: vanilla.require_place: a.tenant_id = p_user.tenant_id":
        "the twin's agents are retired, and those do not count",
    "status check: vanilla.fire_timer: s.status = 'waiting'":
        "an answer that comes too late, which takes two sessions: tests/workflows/proof/test_found.py",
    "status check: vanilla.complete_executions: s.status = 'succeeded'":
        "what was skipped has no output: tests/workflows/test_runner.py",
    "status check: vanilla.complete_executions: s.status = 'waiting'":
        "one that waits for nothing is ended by the longer way too",
    "tenant comparison: vanilla.complete_executions: e.tenant_id = d.tenant_id (2)":
        "the twin's has ended when its own has, or has not, with it",
    "tenant comparison: vanilla.complete_executions: s.tenant_id = n.tenant_id":
        "the twin has the same steps, and the first that is found is the own",
    "tenant comparison: vanilla.complete_executions: t.tenant_id = e.tenant_id":
        "another's timer lets the longer way end it",
    "status check: vanilla.follow_steps: b.status = 'ready' (1)":
        "more pools are told that there is work than have any",
    "status check: vanilla.follow_steps: b.status = 'ready' (2)":
        "the end of an execution that is not decided yet: tests/workflows/test_runner.py",
    "status check: vanilla.follow_steps: s.status = 'pending'":
        "a join that is ready already: tests/workflows/test_runner.py",
    "tenant comparison: vanilla.claim_steps: h.tenant_id = n.tenant_id":
        "no case here has two tenants in one claim: the twin's steps are in a pool of their own",
    "status check: vanilla.worker_allowance: s.status = 'active'":
        "it says where to look; place_steps takes the active strategy",
    "tenant comparison: public.set_routing_strategy: w.tenant_id = vanilla.platform()":
        "names that are not looked for: nothing is held for the workers of tenants",
    "tenant comparison: vanilla.place_steps: n.tenant_id = v_step.tenant_id":
        "the twin has the same nodes",
    "tenant comparison: vanilla.place_steps: w.tenant_id = vanilla.platform()":
        "the id of a candidate, which is a worker of the platform",
    "tenant comparison: vanilla.finish_steps: q.tenant_id = t.tenant_id":
        "t is the row of the execution, and no two steps have one lease",
    "tenant comparison: vanilla.end_execution: e.tenant_id = p_execution.tenant_id (2)":
        "ids of children, each of which is cancelled with the tenant beside it",
    "tenant comparison: vanilla.requeue: n.tenant_id = s.tenant_id":
        "the twin has the same nodes, and a step is queued once",
    "refusal: public.save_agent: perform vanilla.refuse('VS409', format('the name %s is taken (2)":
        "a race that one session does not have",
    "status check: public.publish_workflow: w.status = 'retired' (1)": "more is locked than is needed",
    "status check: public.save_agent: a.status = 'retired'": "more is locked than is needed",
    "tenant comparison: public.publish_workflow: v.tenant_id = v_workflow.tenant_id (1)":
        "the hash beside it is of another text in the twin",
    "tenant comparison: public.save_agent: v.tenant_id = v_agent.tenant_id (2)":
        "the hash beside it is of another text in the twin",
    "refusal: public.save_workflow: perform vanilla.refuse('VS409', format('the name %s is taken (2)":
        "a race that one session does not have",
    "refusal: vanilla.keep_workflow_version: raise exception 'a published version does not change' using":
        "a trigger that no function of ours sets off: tests/workflows/test_drafts.py",
    "status check: vanilla.keep_workflow_version: new.state <> 'retired'":
        "a trigger that no function of ours sets off: tests/workflows/test_drafts.py",
    "status check: vanilla.keep_workflow_version: old.state = 'retired'":
        "a trigger that no function of ours sets off: tests/workflows/test_drafts.py",
    "status check: public.my_engines: e.status = 'active'":
        "saves a look: what is retired has its reason and is left out below",
    "tenant comparison: public.my_engines: e.tenant_id = v_user.tenant_id":
        "names of others' engines, which mean nothing to the user",
    "tenant comparison: public.my_engines: e.tenant_id = vanilla.platform()":
        "ai_engines_offered_check: nobody else offers",
    "tenant comparison: public.rebase_engine_copies: e.tenant_id = vanilla.platform()":
        "ai_engines_offered_check: nobody else offers",
    "tenant comparison: public.set_level_engine: l.engine_tenant_id = v_engine.tenant_id":
        "the level's tenant beside it has no engine of the twin's",
    "tenant comparison: public.set_level_engine: l.tenant_id = v_level.tenant_id":
        "the engine's tenant beside it has no level of the twin's",
    "tenant comparison: vanilla.bring_version: v.tenant_id = p_origin_tenant_id":
        "no case here runs an engine of the platform: tests/engines/test_engines.py",
    "tenant comparison: vanilla.bring_version: v.tenant_id = p_tenant_id":
        "no case here runs an engine of the platform: tests/engines/test_engines.py",
    "tenant comparison: vanilla.bring_version: v.tenant_id = w.tenant_id":
        "no case here runs an engine of the platform: tests/engines/test_engines.py",
    "tenant comparison: vanilla.bring_version: w.tenant_id = p_origin_tenant_id":
        "no case here runs an engine of the platform: tests/engines/test_engines.py",
    "tenant comparison: vanilla.engine_candidates: e.tenant_id = vanilla.platform() (1)":
        "ai_engines_offered_check: nobody else offers",
    "tenant comparison: vanilla.engine_candidates: le.engine_tenant_id = e.tenant_id":
        "the level's tenant beside it has no engine of the twin's",
    "tenant comparison: vanilla.engine_candidates: le.tenant_id = a.tenant_id":
        "the engine's tenant beside it has no level of the twin's",
    "tenant comparison: vanilla.engine_candidates: x.tenant_id = vanilla.platform()":
        "engine_assignments_whom_check: nobody else has a default for everybody",
    "tenant comparison: vanilla.known_models: p.tenant_id = m.provider_tenant_id":
        "the flow that a case deploys calls a model of the platform, whose provider no tenant has by id",
    "tenant comparison: vanilla.let_in: e.tenant_id = p_tenant_id":
        "no case here goes on with an execution that has a limit: tests/engines/test_modes.py",
    "tenant comparison: vanilla.let_in: n.tenant_id = e.tenant_id":
        "no case here goes on with an execution that has a limit: tests/engines/test_modes.py",
    "tenant comparison: vanilla.let_in: q.tenant_id = s.tenant_id":
        "no case here goes on with an execution that has a limit: tests/engines/test_modes.py",
    "tenant comparison: vanilla.let_in: q.tenant_id = x.tenant_id":
        "no case here goes on with an execution that has a limit: tests/engines/test_modes.py",
    "tenant comparison: vanilla.let_in: s.tenant_id = e.tenant_id":
        "no case here goes on with an execution that has a limit: tests/engines/test_modes.py",
    "tenant comparison: vanilla.let_in: x.tenant_id = p_tenant_id":
        "no case here goes on with an execution that has a limit: tests/engines/test_modes.py",
    "tenant comparison: public.offered_engines: e.tenant_id = vanilla.platform()":
        "ai_engines_offered_check: nobody else offers",
    "tenant comparison: vanilla.offered_engine: e.tenant_id = vanilla.platform()":
        "ai_engines_offered_check: nobody else offers",
    "refusal: vanilla.keep_engine_version: raise exception 'a deployed version does not change' using e":
        "a trigger that no function of ours sets off: tests/engines/test_engines.py",
    "status check: vanilla.keep_engine_version: new.state <> 'retired'":
        "a trigger that no function of ours sets off: tests/engines/test_engines.py",
    "status check: vanilla.keep_engine_version: old.state = 'retired'":
        "a trigger that no function of ours sets off: tests/engines/test_engines.py",
    "tenant comparison: vanilla.make_call: s.tenant_id = v_run.tenant_id (2)":
        "by a run that was found in its tenant, whose id no other has: a row of the journal is the run's",
    "tenant comparison: vanilla.make_call: s.tenant_id = v_run.tenant_id (3)":
        "by a run that was found in its tenant, whose id no other has: a row of the journal is the run's",
    "tenant comparison: vanilla.keep_call: s.tenant_id = p_run.tenant_id (1)":
        "by a run that was found in its tenant, whose id no other has: a row of the journal is the run's",
    "tenant comparison: vanilla.keep_call: s.tenant_id = p_run.tenant_id (2)":
        "by a run that was found in its tenant, whose id no other has: a row of the journal is the run's",
    "tenant comparison: vanilla.tell_call: s.tenant_id = v_run.tenant_id":
        "by a run that was found in its tenant, whose id no other has: a row of the journal is the run's",
    "tenant comparison: vanilla.fail_step: r.tenant_id = p_step.tenant_id":
        "by an execution that was found in its tenant, whose id no other has",
    "tenant comparison: vanilla.count_anew: q.tenant_id = p_step.tenant_id":
        "by an execution that was found in its tenant, whose id no other has",
    "tenant comparison: vanilla.count_tool_calls: a.tenant_id = p_tenant_id (1)":
        "by the id of an allocation that was found in its tenant, or that a run of it names",
    "tenant comparison: vanilla.release_allocation_holds: h.tenant_id = p_tenant_id (1)":
        "asks only whether there is something to do; what does it asks again",
    "status check: vanilla.release_allocation_holds: h.state = 'open' (1)":
        "asks only whether there is something to do; what does it asks again",
}  # fmt: skip
