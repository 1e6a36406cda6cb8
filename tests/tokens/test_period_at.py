"""vanilla.period_at: which period holds a moment, by the calendar or from the day the user began."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import LONG
from tests.tokens.support import Books


@pytest.mark.parametrize(
    ("period", "zone", "at", "starts", "ends"),
    [
        ("month", "UTC", "2026-03-15T10:00Z", "2026-03-01T00:00Z", "2026-04-01T00:00Z"),
        # a moment on the border begins the new period
        ("month", "UTC", "2026-04-01T00:00Z", "2026-04-01T00:00Z", "2026-05-01T00:00Z"),
        # still February in Los Angeles
        ("month", "America/Los_Angeles", "2026-03-01T07:59Z", "2026-02-01T08:00Z", "2026-03-01T08:00Z"),
        # already March in Tokyo
        ("month", "Asia/Tokyo", "2026-02-28T15:00Z", "2026-02-28T15:00Z", "2026-03-31T15:00Z"),
        # summer time begins inside the month: it starts at +1 and ends at +2
        ("month", "Europe/Berlin", "2026-03-15T00:00Z", "2026-02-28T23:00Z", "2026-03-31T22:00Z"),
        # and ends: a month of 745 hours
        ("month", "Europe/Berlin", "2026-10-15T00:00Z", "2026-09-30T22:00Z", "2026-10-31T23:00Z"),
        # days of 23 and of 25 hours
        ("day", "Europe/Berlin", "2026-03-29T12:00Z", "2026-03-28T23:00Z", "2026-03-29T22:00Z"),
        ("day", "Europe/Berlin", "2026-10-25T12:00Z", "2026-10-24T22:00Z", "2026-10-25T23:00Z"),
        # midnight does not exist: the day begins at one
        ("day", "Africa/Cairo", "2026-04-24T12:00Z", "2026-04-23T22:00Z", "2026-04-24T21:00Z"),
        # midnight comes twice: in the hour before the second one the old day goes on
        ("day", "America/Havana", "2026-11-01T04:30Z", "2026-10-31T04:00Z", "2026-11-01T05:00Z"),
        # weeks begin on Monday, years on the first of January
        ("week", "UTC", "2026-03-15T23:59Z", "2026-03-09T00:00Z", "2026-03-16T00:00Z"),
        ("year", "Asia/Kolkata", "2026-12-31T19:00Z", "2026-12-31T18:30Z", "2027-12-31T18:30Z"),
    ],
)
async def test_a_calendar_period(books: Books, period: str, zone: str, at: str, starts: str, ends: str) -> None:
    assert await period_at(books, period, "calendar", "2020-05-05T05:05Z", zone, at) == (moment(starts), moment(ends))


@pytest.mark.parametrize(
    ("period", "zone", "anchor", "at", "starts", "ends"),
    [
        ("month", "UTC", "2026-01-15T10:00Z", "2026-03-15T09:59Z", "2026-02-15T10:00Z", "2026-03-15T10:00Z"),
        ("month", "UTC", "2026-01-15T10:00Z", "2026-03-15T10:00Z", "2026-03-15T10:00Z", "2026-04-15T10:00Z"),
        # the 31st: the last day of a shorter month, and the 31st again after it
        ("month", "UTC", "2026-01-31T00:00Z", "2026-02-28T00:00Z", "2026-02-28T00:00Z", "2026-03-31T00:00Z"),
        ("month", "UTC", "2026-01-31T00:00Z", "2026-03-30T23:59Z", "2026-02-28T00:00Z", "2026-03-31T00:00Z"),
        ("month", "UTC", "2026-01-31T00:00Z", "2026-04-30T00:00Z", "2026-04-30T00:00Z", "2026-05-31T00:00Z"),
        # the 30th and 31st in a leap year
        ("month", "UTC", "2027-12-31T00:00Z", "2028-02-29T12:00Z", "2028-02-29T00:00Z", "2028-03-31T00:00Z"),
        # the 29th of February
        ("year", "UTC", "2028-02-29T00:00Z", "2029-03-01T00:00Z", "2029-02-28T00:00Z", "2030-02-28T00:00Z"),
        ("year", "UTC", "2028-02-29T00:00Z", "2032-03-01T00:00Z", "2032-02-29T00:00Z", "2033-02-28T00:00Z"),
        # the hour of the day is kept over summer time
        (
            "month",
            "Europe/Berlin",
            "2026-01-15T11:00Z",
            "2026-07-20T00:00Z",
            "2026-07-15T10:00Z",
            "2026-08-15T10:00Z",
        ),
        # an hour that does not exist that day begins one later, an hour that comes twice begins once
        ("day", "Europe/Berlin", "2026-01-15T01:30Z", "2026-03-29T01:10Z", "2026-03-28T01:30Z", "2026-03-29T01:30Z"),
        ("day", "Europe/Berlin", "2026-01-15T01:30Z", "2026-10-25T00:40Z", "2026-10-24T00:30Z", "2026-10-25T01:30Z"),
        # before the anchor there are periods too
        ("month", "UTC", "2026-05-10T00:00Z", "2026-04-01T00:00Z", "2026-03-10T00:00Z", "2026-04-10T00:00Z"),
        ("week", "UTC", "2026-03-04T12:00Z", "2026-03-20T00:00Z", "2026-03-18T12:00Z", "2026-03-25T12:00Z"),
    ],
)
async def test_an_anniversary_period(
    books: Books, period: str, zone: str, anchor: str, at: str, starts: str, ends: str
) -> None:
    assert await period_at(books, period, "anniversary", anchor, zone, at) == (moment(starts), moment(ends))


ZONES = (
    "UTC",
    "Europe/Berlin",
    "America/Havana",
    "Africa/Cairo",
    "Australia/Lord_Howe",
    "Asia/Kathmandu",
    "Pacific/Apia",
)


async def test_periods_hold_their_moments_and_follow_each_other_without_a_gap(books: Books) -> None:
    moments = st.datetimes(datetime(2009, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC))
    cases: list[tuple[str, str, str, datetime, datetime]] = []

    @settings(max_examples=1500 if LONG else 300, deadline=None, database=None)
    @given(
        st.sampled_from(("day", "week", "month", "year")),
        st.sampled_from(("calendar", "anniversary")),
        st.sampled_from(ZONES),
        moments,
        st.one_of(moments, st.sampled_from(ZONES).flatmap(near_a_change_of_the_clock)),
    )
    def collect(period: str, by: str, zone: str, anchor: datetime, at: datetime) -> None:
        cases.append((period, by, zone, anchor, at))

    collect()
    wrong = await books.connection.fetch(
        "select c.* from unnest($1::text[], $2::text[], $3::text[], $4::timestamptz[], $5::timestamptz[])"
        " c (period, anchored, zone, anchor, at),"
        " vanilla.period_at(c.period, c.anchored, c.anchor, c.zone, c.at) p,"
        " vanilla.period_at(c.period, c.anchored, c.anchor, c.zone, p.ends_at) n"
        " where not (p.starts_at <= c.at and c.at < p.ends_at and n.starts_at = p.ends_at)",
        *(list(column) for column in zip(*cases, strict=True)),
    )
    assert wrong == []


def near_a_change_of_the_clock(zone: str) -> st.SearchStrategy[datetime]:
    """Moments within three hours of a change of the zone's offset."""
    start, tz = datetime(2009, 1, 1, tzinfo=UTC), ZoneInfo(zone)
    days = [start + timedelta(days=n) for n in range(7600)]
    changes = [a for a, b in pairwise(days) if a.astimezone(tz).utcoffset() != b.astimezone(tz).utcoffset()]
    minutes = st.integers(-180, 1620)
    return st.tuples(st.sampled_from(changes or days), minutes).map(lambda pair: pair[0] + timedelta(minutes=pair[1]))


async def period_at(books: Books, period: str, by: str, anchor: str, zone: str, at: str) -> tuple[datetime, datetime]:
    return tuple(
        await books.connection.fetchrow(
            "select * from vanilla.period_at($1, $2, $3, $4, $5)", period, by, moment(anchor), zone, moment(at)
        )
    )


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)
