"""Which host a process is, and whether the others have come."""

import threading

import pytest

from sim.experiments import hosts
from sim.experiments.hosts import FOLDER, Host, joined, this_host

VERSIONS = {"jax": "1", "python": "3"}


@pytest.mark.parametrize(
    ("hosts", "host", "environment", "expected"),
    [
        (None, None, {"SLURM_NTASKS": "4", "SLURM_PROCID": "3"}, Host()),
        ("2", 1, {}, Host(1, 2)),
        ("2", 0, {"SLURM_NTASKS": "4", "SLURM_PROCID": "3"}, Host(0, 2)),
        ("1", None, {}, Host()),
        ("auto", None, {"SLURM_NTASKS": "4", "SLURM_PROCID": "3"}, Host(3, 4)),
        ("auto", None, {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "PMI_SIZE": "4", "PMI_RANK": "2"}, Host(2, 4)),
        ("4", None, {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "2"}, Host(2, 4)),
    ],
)
def test_which_host_this_is(hosts, host, environment, expected):
    assert this_host(hosts, host, environment) == expected


@pytest.mark.parametrize(
    ("hosts", "host", "message"),
    [
        (None, 1, r"^host: .*--hosts"),
        ("auto", None, r"^hosts: .*SLURM_NTASKS.*auto"),
        ("two", 0, r"^hosts: .*'two'"),
        ("0", 0, r"^hosts: .*'0'"),
        ("2", None, r"^host: .*0 to 1.*none"),
        ("2", 2, r"^host: .*0 to 1.*2"),
    ],
)
def test_what_is_no_host(hosts, host, message):
    with pytest.raises(ValueError, match=message):
        this_host(hosts, host, {})


def come(folder, comers, versions=VERSIONS, wait=20.0):
    """Let hosts come to a folder, each in a thread; the error that each ends with, or None."""
    errors = dict.fromkeys(comers)

    def of(host):
        try:
            with joined(folder, host, versions if host.number == 0 else versions | {"python": "4"}, wait=wait):
                pass
        except ValueError as error:
            errors[host] = str(error)

    threads = [threading.Thread(target=of, args=(host,)) for host in comers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return list(errors.values())


def test_hosts_wait_for_each_other(tmp_path):
    inside = []

    def of(number):
        with joined(tmp_path, Host(number, 3), VERSIONS, wait=20.0):
            inside.append(number)

    threads = [threading.Thread(target=of, args=(number,)) for number in (2, 0)]
    for thread in threads:
        thread.start()
    threads[0].join(timeout=1)
    assert inside == []
    of(1)
    for thread in threads:
        thread.join()
    assert sorted(inside) == [0, 1, 2]


def test_one_that_does_not_come_is_named(tmp_path):
    missing = r"^hosts: expected all 3 .*within 0.3 s, got none yet of 1, 2"
    with pytest.raises(ValueError, match=missing), joined(tmp_path, Host(0, 3), VERSIONS, wait=0.3):
        raise AssertionError


def test_one_that_came_to_an_earlier_run_has_not_come(tmp_path):
    assert come(tmp_path, [Host(1, 2)], wait=0.1) != [None]
    with pytest.raises(ValueError, match=r"got none yet of 1"), joined(tmp_path, Host(0, 2), VERSIONS, wait=0.3):
        raise AssertionError


def test_two_that_look_at_once_do_not_take_each_other_for_the_missing_one(tmp_path, monkeypatch):
    assert come(tmp_path, [Host(2, 3)], wait=0.1) != [None]
    monkeypatch.setattr(hosts, "STEP", 0.0)
    errors = come(tmp_path, [Host(0, 3), Host(1, 3)], {"python": "4"}, wait=1.0)
    assert [error.rpartition("none yet of ")[2] for error in errors] == ["2", "2"]


def test_hosts_with_other_versions_are_refused(tmp_path):
    first, second = come(tmp_path, [Host(0, 2), Host(1, 2)])
    assert first == "hosts: expected the same versions on all, got on 0 and 1: python 3 and 4"
    assert second == "hosts: expected the same versions on all, got on 1 and 0: python 4 and 3"


def test_a_number_is_of_one_process(tmp_path):
    with joined(tmp_path, Host(), VERSIONS, wait=0.0):
        assert not (tmp_path / FOLDER).exists()
    inside, leave = threading.Barrier(3), threading.Event()

    def stay(number):
        with joined(tmp_path, Host(number, 2), VERSIONS, wait=20.0):
            inside.wait(timeout=20.0)
            leave.wait()

    threads = [threading.Thread(target=stay, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    inside.wait(timeout=40.0)
    try:
        taken = r"^host: .*no other process has, got 1, which process \d+ on "
        with pytest.raises(ValueError, match=taken), joined(tmp_path, Host(1, 2), VERSIONS, wait=1.0):
            raise AssertionError
    finally:
        leave.set()
        for thread in threads:
            thread.join()
