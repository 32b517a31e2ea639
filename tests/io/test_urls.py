from __future__ import annotations

from pathlib import Path

import pytest

from kt_ray._io.urls import redacted, sqlite_path


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("postgresql://me:secret@host/db", "postgresql://me:***@host/db"),
        ("postgresql+psycopg://me:sec/r@et:x@host:5432/db", "postgresql+psycopg://me:***@host:5432/db"),
        ("ray://me:a12/3@head:10001", "ray://me:***@head:10001"),
        (
            "postgresql://host/db?user=me&password=s3cret&sslmode=on",
            "postgresql://host/db?user=me&password=***&sslmode=on",
        ),
        ("s3://b/k?secret_key=AbC/1+2&region=eu", "s3://b/k?secret_key=***&region=eu"),
        ("no answer at https://h/x?X-Amz-Signature=abc; retry", "no answer at https://h/x?X-Amz-Signature=***; retry"),
        ("sqlite:////a/b.db", "sqlite:////a/b.db"),
        ("http://127.0.0.1:5000/#/models/kt@champion", "http://127.0.0.1:5000/#/models/kt@champion"),
        ("kt-ray translate models:/kt@champion", "kt-ray translate models:/kt@champion"),
        ("http://127.0.0.1:5000 and models:/kt@champion", "http://127.0.0.1:5000 and models:/kt@champion"),
    ],
)
def test_secrets_are_not_printed(text: str, printed: str) -> None:
    assert redacted(text) == printed
    assert redacted(printed) == printed


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:////a/b.db", "/a/b.db"),
        ("sqlite:///b.db", "b.db"),
        ("sqlite+pysqlite:////a/b c.db?timeout=3", "/a/b c.db"),
        ("sqlite:///file:///a/what%3Fnow.db?uri=true", "/a/what?now.db"),
        ("sqlite:///:memory:", None),
        ("sqlite://", None),
        ("postgresql:///db", None),
        ("http://host:5000", None),
    ],
)
def test_the_file_of_a_sqlite_url(url: str, path: str | None) -> None:
    assert sqlite_path(url) == (None if path is None else Path(path))
