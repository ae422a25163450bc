"""Entries of baselines: which measurement each belongs to."""

from __future__ import annotations

from pytest_trainability.checks.baseline_entries import Entry, environment_key, find_entry


def entry(device: str, **more: str) -> Entry:
    environment = {"device": device, "dtype": "float32", "platform": "linux x86_64", "torch": "2.13.0", "threads": "1"}
    return Entry(environment | more, {}, (), (), {})


def by_key(*entries: Entry) -> dict[str, Entry]:
    return {e.key: e for e in entries}


def test_versions_and_threads_are_one_environment_and_devices_are_not() -> None:
    given = {"torch": "2.6.0", "platform": "darwin arm64", "dtype": "float32", "device": "cuda", "threads": "8"}
    assert environment_key({**given, "isa": "avx2", "blas": "mkl"}) == "cuda float32 blas=mkl isa=avx2"
    assert entry("cpu").key == "cpu float32"


def test_the_entry_of_the_same_environment_is_found() -> None:
    entries = by_key(entry("cuda"), entry("cpu", torch="2.6.0"), entry("cpu", isa="avx2"))
    assert find_entry(entries, entry("cpu")) is entries["cpu float32"]
    assert find_entry(entries, entry("cpu", isa="avx2")) is entries["cpu float32 isa=avx2"]


def test_without_one_the_entry_of_another_device_is_found_and_that_of_another_type_is_not() -> None:
    entries = by_key(entry("mps"), entry("cuda"), entry("cpu", dtype="float64"))
    assert find_entry(entries, entry("cpu")) is entries["cuda float32"]
    assert find_entry(entries, entry("cpu", dtype="bfloat16")) is None
    assert find_entry(entries, entry("cpu", isa="avx2")) is None
    assert find_entry({}, entry("cpu")) is None
