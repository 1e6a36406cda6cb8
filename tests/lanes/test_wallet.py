"""A short form of tests/tokens and tests/concurrency: by SQL as the login that migrated, at once, and over HTTP."""

from tests.concurrency.test_wallet import (
    test_a_mixed_crowd_never_crosses_the_limit,
    test_level_switches_and_debits_at_once_do_not_deadlock,
    test_one_key_sent_sixteen_times_at_once_has_one_effect_and_one_answer,
    test_twenty_reservations_of_75_on_500_make_exactly_six_holds,
    test_two_first_calls_for_a_new_payer_make_one_user,
    test_two_resets_at_once_reset_each_wallet_once,
)
from tests.tokens.test_adjust import (
    test_a_direction_changes_the_wallet_as_it_says,
    test_a_refusal_names_its_code_and_writes_nothing,
    test_the_same_key_and_body_replay_the_first_answer,
    test_the_same_key_with_another_body_is_refused,
)
from tests.tokens.test_routes import (
    test_a_user_sees_their_own_wallet,
    test_only_admins_of_the_tenant_change_wallets,
)
from tests.tokens.test_settle import test_a_settlement_charges_the_actual
