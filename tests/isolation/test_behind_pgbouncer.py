"""The whole server behind PgBouncer in transaction mode: door, gateway, console."""

from pathlib import Path

import asyncpg

from tests.conftest import Cluster, People, Person, migrated_database
from tests.console.console_support import PASSWORD, look, set_password, signed_in
from tests.pgbouncer import pgbouncer, through
from tests.processes import assert_books_are_clean, over
from vanilla_saas.database.context import ContextSigner
from vanilla_saas.database.pool import _prepare


async def test_people_sign_in_call_a_model_and_see_their_wallet_through_pgbouncer(
    cluster: Cluster, signer: ContextSigner, tmp_path: Path
) -> None:
    with pgbouncer(cluster, signer, default_pool_size="2") as bouncer:
        async with migrated_database(cluster) as name:
            operator = await asyncpg.connect(cluster.url(database=name))
            await _prepare(operator)
            people = People(operator)
            home = over(cluster, name, tmp_path)
            home.environment |= {
                f"VANILLA_SAAS_{login.upper()}_URL": through(bouncer, f"vanilla_{login}", name, signer)
                for login in ("app", "runtime")
            }
            async with home.serving("serve") as server:
                for _ in range(3):
                    await _visit(server.url, people, await people.user(balance=100_000))
            assert "error" not in server.err, server.err
            await assert_books_are_clean(operator)
            await operator.close()


async def _visit(url: str, people: People, person: Person) -> None:
    await set_password(people, person)
    async with signed_in(url, people, person) as http:
        door = {"tenant": "default", "email": person.email, "password": PASSWORD}
        async with http.post("/api/v1/auth/sign-in", json=door) as answer:
            assert answer.status == 200, await answer.text()
            session = (await answer.json())["access_token"]
        question = {"model": "sandbox-small", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 20}
        async with http.post("/v1/chat/completions", json=question, headers=person.headers) as answer:
            assert answer.status == 200, await answer.text()
            charged = (await answer.json())["usage"]["total_tokens"]
        assert charged > 0
        async with http.get("/api/v1/wallet", headers={"authorization": f"Bearer {session}"}) as answer:
            wallet = await answer.json()
        assert (wallet["reserved"], wallet["available"]) == (0, 100_000 - wallet["spent"])
        status, page, _ = await look(http, "/wallet")
        assert status == 200
        assert person.email in page.text
