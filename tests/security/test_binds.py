"""Where process 0 listens: an address of its own where one is known, and the doctor says so where anybody may call."""

import socket

import pytest

from mlprod.doctor import machine
from mlprod.processes import rank

ADDRESS, BIND = "JAX_COORDINATOR_ADDRESS", "JAX_COORDINATOR_BIND_ADDRESS"


@pytest.mark.parametrize(
    "coordinator, given, host, address",
    [
        ("127.0.0.1:1234", "", "127.0.0.1", "127.0.0.1:1234"),
        ("192.0.2.1:1234", "", "", "[::]:1234"),  # of no machine, so not of this one: it is behind another's address
        ("no.such.host.invalid:1234", "", "", "[::]:1234"),
        ("192.0.2.1:1234", "127.0.0.1:99", "127.0.0.1", "127.0.0.1:99"),
        ("127.0.0.1:1234", "[::]:1234", "", "[::]:1234"),
        ("127.0.0.1:1234", "0.0.0.0:1234", "", "[::]:1234"),
    ],
)
def test_where_process_0_listens(coordinator: str, given: str, host: str, address: str) -> None:
    """On the one address that others call, if it is this machine's."""
    env = {BIND: given} if given else {}
    assert rank.bind_host(coordinator, env) == host
    assert rank.bind_address(coordinator, env) == address


def test_a_name_of_this_machine_for_itself_is_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian calls a machine 127.0.1.1 by its name: who listens there is heard by nobody else."""
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.1.1", 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    assert rank.bind_host("node1:1234", {}) == ""


def test_the_doctor_warns_of_a_public_bind() -> None:
    """And is silent where there is one process."""
    assert list(machine.coordinator_bind({})) == []
    (private,) = machine.coordinator_bind({ADDRESS: "127.0.0.1:1234"})
    assert private.state == "ok"
    for env in ({ADDRESS: "127.0.0.1:1", BIND: "[::]:1"}, {ADDRESS: "127.0.0.1:1", BIND: "8.8.8.8:1"}):
        (public,) = machine.coordinator_bind(env)
        assert public.state == "warning"
        assert BIND in public.mend
    (unknown,) = machine.coordinator_bind({ADDRESS: "127.0.0.1:1", BIND: "no.such.host.invalid:1"})
    assert unknown.state == "warning"
    assert "no.such.host.invalid has no address" in unknown.told
