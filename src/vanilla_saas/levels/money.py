"""Amounts in minor units as people read and write them."""

from vanilla_saas.database.errors import VanillaError

_DECIMALS = {
    0: "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX VND VUV XAF XOF XPF",
    3: "BHD IQD JOD KWD LYD OMR TND",
    4: "CLF",
}
"""Currencies of ISO 4217 that have another number of decimals than two."""


def _decimals(currency: str) -> int:
    """How many decimals a currency has: minor units are 1 / 10 ** decimals of it."""
    return next((digits for digits, names in _DECIMALS.items() if currency in names.split()), 2)


def money(amount: int, currency: str) -> str:
    """2900 USD as 29 USD, 2950 as 29.50 USD, 1500 JPY as 1,500 JPY, -5 USD as -0.05 USD."""
    digits = _decimals(currency)
    whole, minor = divmod(abs(amount), 10**digits)
    sign = "-" if amount < 0 else ""
    return f"{sign}{whole:,}.{minor:0{digits}d} {currency}" if minor else f"{sign}{whole:,} {currency}"


def whole_units(amount: int, currency: str) -> int:
    """2950 USD as 30: what a chart draws."""
    return round(amount / float(10 ** _decimals(currency)))


def minor_units(amount: str, currency: str) -> int:
    """12.50 as 1250. Raises VanillaError `invalid_request` for no number, or more decimals than the currency has."""
    whole, _, fraction = amount.partition(".")
    if not whole.isdecimal() or not (fraction or "0").isdecimal():
        raise VanillaError("invalid_request", "An amount is a number such as 9 or 9.50.", {"param": "amount"})
    digits = _decimals(currency)
    if len(fraction) > digits:
        raise VanillaError("invalid_request", f"{currency} has {digits} decimals.", {"param": "amount"})
    return int(whole + fraction.ljust(digits, "0"))
