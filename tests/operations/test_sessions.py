"""`doctor locks` and `doctor slow`: an operator sees who waits for whom, and what runs long."""

import asyncio
import json
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from tests.conftest import Cluster, People
from tests.processes import eventually, over
from vanilla_saas.operations.sessions import Look, look


async def test_a_session_that_waits_is_shown_with_the_one_that_it_waits_for(
    cluster: Cluster, database_name: str, people: People, tmp_path: Path
) -> None:
    person = await people.user()
    url = cluster.url(database=database_name)
    holder, waiter = await asyncpg.connect(url), await asyncpg.connect(url)
    lock = "select from user_token_wallets where user_id = $1 for update"
    transaction = holder.transaction()
    await transaction.start()
    await holder.execute(lock, person.identity.user_id)
    waiting = asyncio.create_task(waiter.execute(lock, person.identity.user_id))

    async def ours() -> list[dict[str, Any]]:
        return [row for row in await look(url, Look.locks) if row["waiting_pid"] == waiter.get_server_pid()]

    (row,) = await eventually(ours)
    assert (row["holding_pid"], row["holding_state"]) == (holder.get_server_pid(), "idle in transaction")
    assert row["waiting_statement"] == row["holding_statement"] == lock
    assert row["waited"] >= 0
    slow = [row for row in await look(url, Look.slow) if row["pid"] == waiter.get_server_pid()]
    assert [row["wait_event_type"] for row in slow] == ["Lock"]
    home = over(cluster, database_name, tmp_path)
    home.environment["DATABASE_URL"] = url
    shown = await asyncio.to_thread(home.run, "doctor", "locks", "--json")
    assert shown.code == 0, shown
    assert str(waiter.get_server_pid()) in [str(row["waiting_pid"]) for row in json.loads(shown.out)]
    await transaction.rollback()
    await waiting
    assert await ours() == []
    await holder.close()
    await waiter.close()


@pytest.mark.parametrize("login", ["vanilla_app", "vanilla_runtime", "vanilla_readonly"])
@pytest.mark.parametrize("view", ["blocked_sessions", "running_statements"])
async def test_no_login_of_requests_sees_the_sessions(
    cluster: Cluster, database_name: str, login: str, view: str
) -> None:
    connection = await asyncpg.connect(cluster.url(login, database_name))
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await connection.fetch(f"select * from vanilla.{view}")
    await connection.close()
