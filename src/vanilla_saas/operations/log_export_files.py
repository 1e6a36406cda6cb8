"""Where exports are kept, a directory or an S3-compatible bucket, and the Parquet form.

Buckets and Parquet need the extra `export` (minio, pyarrow), which is imported when it is used.
"""

import os
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

from vanilla_saas.database.errors import VanillaError
from vanilla_saas.settings import Settings


class Target(Protocol):
    """`scratch` is a folder to write in; `keep` puts a finished file in its place and returns its location."""

    scratch: Path

    def keep(self, path: Path, name: str) -> str: ...


def open_target(settings: Settings) -> Target:
    """The configured place. Raises VanillaError `invalid_state`, `invalid_request`, OSError."""
    if not settings.export_to:
        raise VanillaError(
            "invalid_state",
            "retention.export is on, but VANILLA_SAAS_EXPORT_TO does not say where to.",
            {"param": "VANILLA_SAAS_EXPORT_TO"},
            "Set it to a directory or s3://bucket/prefix for every process that runs schedules.",
        )
    if settings.export_format == "parquet":
        _extra("pyarrow")
    if settings.export_to.startswith("s3://"):
        return Bucket(settings.export_to, settings.home)
    return Directory(Path(settings.export_to))


class Directory:
    """A directory on this machine, or one that is mounted on it."""

    def __init__(self, folder: Path):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        # the same file system, so that a file comes to its place whole or not at all
        self.scratch = folder

    def keep(self, path: Path, name: str) -> str:
        place = self._folder / name
        path.chmod(0o600)
        path.replace(place)
        descriptor = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # the name as well as the bytes
        finally:
            os.close(descriptor)
        return str(place.resolve())


class Bucket:
    """`s3://bucket/prefix?endpoint=https://host&region=r`; AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY open it."""

    def __init__(self, url: str, home: Path):
        minio = _extra("minio")
        try:
            parts = urlsplit(url)
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            endpoint = urlsplit(query.get("endpoint", "https://s3.amazonaws.com"))
            if endpoint.scheme not in ("http", "https") or endpoint.path.strip("/"):
                raise ValueError("its endpoint is not http(s)://host or http(s)://host:port")
            self._bucket, self._prefix = parts.netloc, parts.path.strip("/")
            self._client = minio.Minio(
                endpoint.netloc,
                secure=endpoint.scheme != "http",
                region=query.get("region", "us-east-1"),
                credentials=import_module("minio.credentials").EnvAWSProvider(),
            )
        except ValueError as error:
            raise VanillaError(
                "invalid_request",
                f"VANILLA_SAAS_EXPORT_TO is not the address of a bucket: {error}.",
                {"param": "VANILLA_SAAS_EXPORT_TO"},
                "Its form is s3://bucket/prefix?endpoint=https://host&region=name.",
            ) from None
        home.mkdir(parents=True, exist_ok=True)
        self.scratch = home

    def keep(self, path: Path, name: str) -> str:
        key = f"{self._prefix}/{name}" if self._prefix else name
        try:
            self._client.fput_object(self._bucket, key, str(path))
            there = self._client.stat_object(self._bucket, key).size
        except Exception as error:  # the library has a dozen kinds, and those of its HTTP client
            raise VanillaError("upstream_error", f"The bucket {self._bucket} does not take {key}: {error}") from error
        if there != path.stat().st_size:
            raise VanillaError("upstream_error", f"The bucket {self._bucket} has {there} bytes of {key}, not all.")
        return f"s3://{self._bucket}/{key}"


_FORMS = {"bigint": "int64", "integer": "int32", "boolean": "bool_", "timestamp with time zone": "timestamp"}
"""Columns that are not text in a Parquet file; JSON, ids and amounts of any size stay as they are written."""


def write_parquet(table: Path, path: Path, columns: list[tuple[str, str]]) -> None:
    """A CSV file of PostgreSQL as Parquet; times in UTC to the microsecond. Puts it on the disk."""
    pa, csv, parquet = _extra("pyarrow"), _extra("pyarrow.csv"), _extra("pyarrow.parquet")
    form: dict[str, Any] = {
        "int64": pa.int64(), "int32": pa.int32(), "bool_": pa.bool_(), "timestamp": pa.timestamp("us", "UTC")
    }  # fmt: skip
    types = {name: form.get(_FORMS.get(kind, ""), pa.string()) for name, kind in columns}
    options = csv.ConvertOptions(
        column_types=types, true_values=["t"], false_values=["f"], null_values=[""],
        strings_can_be_null=True, quoted_strings_can_be_null=False,
    )  # fmt: skip
    parse = csv.ParseOptions(newlines_in_values=True)
    with (
        csv.open_csv(table, convert_options=options, parse_options=parse) as batches,
        path.open("xb") as file,
    ):
        with parquet.ParquetWriter(file, batches.schema, compression="zstd") as writer:
            for batch in batches:
                writer.write_batch(batch)
        file.flush()
        os.fsync(file.fileno())


def _extra(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError:
        raise VanillaError(
            "invalid_state",
            f"{module.partition('.')[0]} is not installed.",
            {"need": "export"},
            "pip install 'vanilla-saas[export]'",
        ) from None
