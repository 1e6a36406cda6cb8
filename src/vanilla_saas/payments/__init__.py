"""Payments through Stripe: checkout, portal, auto top-up, and what its events mean for levels and wallets.

The rules are SQL (migrations/007, section payments); this room speaks HTTP with Stripe. No card data passes through it.
"""
