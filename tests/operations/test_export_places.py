"""Exports into a bucket (moto's server speaks S3 over HTTP) and onto a disk that fills."""

import asyncio
import ctypes
import gzip
import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from minio import Minio

from tests.conftest import Cluster
from tests.operations.schedule_support import Time
from tests.operations.test_retention import context, database, time
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.operations.log_export import export_logs

__all__ = ["database", "time"]

KEYS = {"AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": "not-a-secret"}


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The address of a server that keeps buckets in memory."""
    command = [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stderr is not None
            said = next(line for line in server.stderr if "Running on" in line)
            found = re.search(r"http://127\.0\.0\.1:\d+", said)
            assert found, said
            yield found[0]
        finally:
            server.kill()


@pytest.fixture
def bucket(s3: str, monkeypatch: pytest.MonkeyPatch) -> Minio:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    client = Minio(s3.removeprefix("http://"), *KEYS.values(), secure=False, region="eu-central-1")
    if not client.bucket_exists("kept"):
        client.make_bucket("kept")
    return client


@pytest.mark.parametrize("form", ["csv", "parquet"])
async def test_a_month_is_in_the_bucket_to_the_byte_before_it_is_dropped(
    cluster: Cluster, time: Time, s3: str, bucket: Minio, tmp_path: Path, form: str
) -> None:
    await time.set("retention.export", True)
    month = await time.log_rows("ai_executions", 5, 40)
    place = f"s3://kept/logs/{form}?endpoint={s3}&region=eu-central-1"
    done = await export_logs(context(cluster, time, tmp_path, export_to=place, export_format=form))
    assert done["rows"] == 40
    (there,) = await asyncio.to_thread(lambda: list(bucket.list_objects("kept", f"logs/{form}/", recursive=True)))
    bytes_there = await asyncio.to_thread(lambda: bucket.get_object("kept", there.object_name).read())
    kept = await time.connection.fetchrow("select * from log_exports")
    assert kept["location"] == f"s3://kept/{there.object_name}"
    assert (kept["bytes"], kept["sha256"]) == (len(bytes_there), hashlib.sha256(bytes_there).digest())
    if form == "csv":
        assert len(gzip.decompress(bytes_there).splitlines()) == 41
    assert [entry.name for entry in tmp_path.iterdir()] == [], "nothing is left on this machine"
    await time.make_due("retention")
    await time.run("retention")
    assert month not in await time.months("ai_executions")


@pytest.mark.parametrize(
    ("place", "changed", "code"),
    [
        ("s3://absent/logs?endpoint={s3}&region=eu-central-1", {}, "upstream_error"),
        ("s3://kept?endpoint=http://127.0.0.1:1", {}, "upstream_error"),
        ("s3://kept?endpoint={s3}/folder", {}, "invalid_request"),
        ("s3://kept?endpoint={s3}", {"AWS_ACCESS_KEY_ID": None}, "upstream_error"),
    ],
)
async def test_a_bucket_that_does_not_take_a_month_keeps_it_from_being_dropped(
    cluster: Cluster,
    time: Time,
    s3: str,
    bucket: Minio,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    changed: dict[str, str | None],
    code: str,
) -> None:
    for name in changed:
        monkeypatch.delenv(name)
    await time.set("retention.export", True)
    month = await time.log_rows("ai_executions", 5, 4)
    with pytest.raises(VanillaError) as refusal:
        await export_logs(context(cluster, time, tmp_path, export_to=place.format(s3=s3)))
    assert refusal.value.name == code
    assert KEYS["AWS_SECRET_ACCESS_KEY"] not in str(refusal.value)
    await time.run("retention")
    assert month in await time.months("ai_executions")
    assert await time.connection.fetchval("select count(*) from log_exports") == 0
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a hundred kilobytes."""
    disk, libc = tmp_path / "disk", ctypes.CDLL(None, use_errno=True)
    disk.mkdir()
    if os.geteuid() != 0 or libc.mount(b"tmpfs", os.fsencode(disk), b"tmpfs", 0, b"size=96k,mode=755"):
        pytest.skip("mounting a file system needs root")
    yield disk
    libc.umount2(os.fsencode(disk), 2)


@pytest.mark.parametrize("form", ["csv", "parquet"])
async def test_a_disk_that_fills_leaves_no_half_file_and_drops_no_month(
    cluster: Cluster, time: Time, tmp_path: Path, small_disk: Path, form: str
) -> None:
    await time.set("retention.export", True)
    month = await time.log_rows("ai_executions", 5, 4)
    # ids do not compress
    await time.connection.execute(
        f"insert into {month} select (jsonb_populate_record(e, jsonb_build_object('id', gen_random_uuid(),"
        f" 'request_id', gen_random_uuid()))).* from {month} e, generate_series(1, 700)"
    )
    with pytest.raises(OSError, match="No space left") as refusal:
        await export_logs(context(cluster, time, tmp_path, export_to=str(small_disk), export_format=form))
    assert refusal.value.errno == 28
    assert list(small_disk.iterdir()) == []
    await time.run("retention")
    assert month in await time.months("ai_executions")
    assert await time.connection.fetchval("select count(*) from log_exports") == 0
    # with space it goes on
    roomy = tmp_path / "roomy"
    done = await export_logs(context(cluster, time, tmp_path, export_to=str(roomy), export_format=form))
    assert done["rows"] == 2804
