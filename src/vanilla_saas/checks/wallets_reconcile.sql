-- A wallet disagrees with its ledger, its open holds or its grants.
-- Mend: Lock the wallet (vanilla-saas wallets lock), run vanilla-saas wallets verify for the user: when the ledger is
-- whole it is right, so restore the wallet, grants and holds of that user from a backup; never edit the ledger.
select tenant_id, user_id, problem, expected, found from public.reconcile_token_wallets()
