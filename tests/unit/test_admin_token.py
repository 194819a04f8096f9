"""What is an admin token, and does anything that is said of it show it?"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from headgate import arguments, serve
from headgate.core.messages import PROTOCOL
from headgate.errors import AdminTokenError, AdminUnreachableError, ConfigError, InvalidTypeError, InvalidValueError
from headgate.router import admin
from headgate.router.afar import AfarWay
from tests.controller.rig import settings_in

TOKEN = "a-token-of-this-test"


@pytest.mark.parametrize("token", [TOKEN, "x" * 16, "schlüssel-zum-tor-ß", "鍵" * 16, "with blanks in the middle", "a" * 1000])
def test_what_is_long_enough_is_a_token(token: str) -> None:
    assert len(admin.key_of(token)) == admin.PROOF_BYTES
    assert admin.key_of(f"{token}x") != admin.key_of(token)


def test_it_is_the_same_however_it_was_typed() -> None:
    assert admin.key_of("schl\u00fcssel-zum-tor") == admin.key_of("schlu\u0308ssel-zum-tor")


@pytest.mark.parametrize("token", ["", "x" * 15, " " * 20, f"{TOKEN} ", f"{TOKEN}\n", f"{TOKEN}\0{TOKEN}", f"{TOKEN}\udcff{TOKEN}"])
def test_what_is_no_token_is_refused_without_being_shown(token: str) -> None:
    with pytest.raises(AdminTokenError) as raised:
        admin.key_of(token)
    assert isinstance(raised.value, PermissionError)
    assert not token.strip() or token.strip() not in str(raised.value)


def test_what_is_no_string_is_refused_without_being_shown() -> None:
    with pytest.raises(InvalidTypeError, match=r"must be a string, got bytes$"):
        admin.key_of(TOKEN.encode())


def test_a_file_has_it_in_its_line(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    assert admin.in_file(str(path)) == TOKEN
    with pytest.raises(AdminTokenError, match="can't be read: No such file"):
        admin.in_file(str(tmp_path / "none"))
    path.write_bytes(b"\xff" * 20)
    with pytest.raises(AdminTokenError, match="not text in UTF-8"):
        admin.in_file(str(path))


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("127.0.0.1:8100", ("127.0.0.1", 8100)),
        ("tcp://a.host:0", ("a.host", 0)),
        ("[::1]:65535", ("::1", 65535)),
        ("0.0.0.0:1", ("0.0.0.0", 1)),
    ],
)
def test_an_address_is_host_and_port(given: str, found: tuple[str, int]) -> None:
    assert admin.address(given) == found


@pytest.mark.parametrize(
    "given", ["8100", ":8100", "host:", "host:x", "host:-1", "host:65536", "::1:8100", "http://host:1", "host:٣", "[]:1"]
)
def test_what_is_no_address_is_refused(given: str) -> None:
    with pytest.raises(InvalidValueError, match=r"admin address|brackets"):
        admin.address(given)


@pytest.mark.parametrize(
    ("host", "is_own"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("::ffff:10.0.0.1", False),
        ("fe80::1%eth0", False),
        ("a.host", False),
    ],
)
def test_only_loopback_is_this_machines_own(host: str, is_own: bool) -> None:
    assert admin.is_loopback(host) is is_own


def test_a_proof_is_good_for_its_side_its_certificate_and_its_connection_alone() -> None:
    key, other = admin.key_of(TOKEN), admin.key_of(f"{TOKEN}-not")
    nonces = {"of_server": b"s" * 32, "of_client": b"c" * 32}
    proofs = {
        admin.proof(key, by_client=True, shown=b"", **nonces),
        admin.proof(key, by_client=False, shown=b"", **nonces),
        admin.proof(key, by_client=True, shown=b"1" * 32, **nonces),
        admin.proof(key, by_client=True, shown=b"2" * 32, **nonces),
        admin.proof(key, by_client=True, shown=b"", of_server=b"c" * 32, of_client=b"s" * 32),
        admin.proof(other, by_client=True, shown=b"", **nonces),
    }
    assert len(proofs) == 6


def test_init_takes_the_token_from_its_argument_or_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    given, by_environment = (admin.key_of(token) for token in (TOKEN, f"{TOKEN}-there"))
    monkeypatch.delenv(admin.TOKEN_VARIABLE, raising=False)
    assert arguments._admin("127.0.0.1:1", TOKEN, encrypted=False) == ("127.0.0.1:1", given)
    with pytest.raises(AdminTokenError, match="HEADGATE_ADMIN_TOKEN"):
        arguments._admin("127.0.0.1:1", None, encrypted=False)
    monkeypatch.setenv(admin.TOKEN_VARIABLE, f"{TOKEN}-there")
    assert arguments._admin("127.0.0.1:1", None, encrypted=False) == ("127.0.0.1:1", by_environment)
    assert arguments._admin("127.0.0.1:1", TOKEN, encrypted=False) == ("127.0.0.1:1", given)
    assert arguments._admin(None, None, encrypted=False) == ("", b"")


def test_whoever_speaks_another_protocol_is_known_by_its_first_words() -> None:
    assert (admin.OPEN[-1], admin.TLS[-1]) == (PROTOCOL, PROTOCOL | 0x80)
    assert len({admin.OPEN, admin.TLS, b"headgate\x01", b"headgate\x81"}) == 4, "nor are they those of nodes (`router/remote.py`)"


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "10.0.0.1", "a.host"])
def test_beyond_loopback_there_is_tls_or_nothing(host: str) -> None:
    with pytest.raises(ConfigError, match=r"over TLS alone.*ssl_certfile.*SSH tunnel"):
        arguments._admin(f"{host}:8100", TOKEN, encrypted=False)
    assert arguments._admin(f"{host}:8100", TOKEN, encrypted=True)[0] == f"{host}:8100"


def test_without_an_address_a_given_token_is_for_the_dashboard_and_one_of_the_environment_for_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(admin.TOKEN_VARIABLE, f"{TOKEN}-there")
    assert arguments._admin(None, TOKEN, encrypted=False) == ("", admin.key_of(TOKEN))
    assert arguments._admin(None, None, encrypted=False) == ("", b"")
    with pytest.raises(AdminTokenError, match="16 to 1024 characters"):
        serve.init(admin_token="short")


def test_who_checks_a_token_that_is_given_knows_neither_it_nor_what_proves_it() -> None:
    check = admin.check_of(admin.key_of(TOKEN))
    assert admin.is_token(TOKEN, check)
    assert check not in (TOKEN.encode(), admin.key_of(TOKEN))
    for other in (f"{TOKEN}x", TOKEN[:-1], "", "short", f"{TOKEN}\ufffd", "x" * 100_000, "\u0300\u0316" * 30_000):
        assert not admin.is_token(other, check)


def test_a_token_is_no_part_of_an_address_and_an_address_none_of_an_init() -> None:
    with pytest.raises(ConfigError, match="admin_token is for an instance at an address"):
        serve.connect(admin_token=TOKEN)
    with pytest.raises(ConfigError, match=r"connect\(\) leads there"):
        serve.init(address="tcp://127.0.0.1:1")


def test_settings_do_not_show_the_key() -> None:
    key = admin.key_of(TOKEN)
    shown = repr(settings_in("/folder", admin_address="127.0.0.1:1", admin_key=key))
    assert "admin_address='127.0.0.1:1'" in shown
    assert repr(key)[2:10] not in shown
    assert "key=" not in shown


def test_what_can_be_no_name_of_a_host_is_said_to_be_none() -> None:
    with pytest.raises(AdminUnreachableError, match=r"'a\.\.b' is no name of a host"):
        asyncio.run(AfarWay("a..b", 8100, admin.key_of(TOKEN)).meet())
