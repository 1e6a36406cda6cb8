"""Mutants that nothing in this suite sees, and why each may live. A name that is caught again fails the suite too."""

SURVIVORS: dict[str, str] = {
    "refusal: public.reset_monthly_tokens: perform vanilla.refuse('VS403', 'the reset runs across tenan":
        "acting_tenant has refused everybody who is not at the platform: kept for the day it does not",
    "refusal: vanilla.redeem_one_time_token: perform vanilla.refuse('VS411', 'the link is used up or too (1)":
        "without a link there is no user either, and the next line refuses in the same words",
    "role check: vanilla.claim_super_admin: role = 'superadmin'": "users_platform_check: nobody else is there",
    "tenant comparison: vanilla.claim_super_admin: tenant_id = vanilla.platform()":
        "users_platform_check: super admins are nowhere else",
    "status check: public.adjust_user_tokens: v_wallet.status <> 'active'":
        "an active wallet is asked for nothing, and a debit asks again",
    "status check: vanilla.admit_call: status = 'active' (6)":
        "the second look, after a lock that two first calls of one user meet at: tests/concurrency",
}  # fmt: skip
