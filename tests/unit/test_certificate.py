"""Is a certificate that can't be used told of before it is shown, and one that was renewed shown without a restart?"""

from __future__ import annotations

import asyncio
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from headgate import serve
from headgate.errors import InvalidValueError
from headgate.router import certificate
from headgate.router.certificate import Certificate
from tests import certificates
from tests.support import until

NOW = datetime.now(UTC)
DAY = timedelta(days=1)


def shown_by(context: ssl.SSLContext, files: certificates.Files) -> bytes:
    """What a client is shown that trusts the authority of these files. Raises `ssl.SSLError` where it doesn't believe it."""
    trusting = ssl.create_default_context(cafile=files.authority)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [trusting.wrap_bio(to_client, to_server, server_hostname="a.test"), context.wrap_bio(to_server, to_client, server_side=True)]
    undone = list(sides)
    while undone:
        for side in list(undone):
            try:
                side.do_handshake()
                undone.remove(side)
            except ssl.SSLWantReadError:
                continue
    return sides[0].getpeercert(binary_form=True) or b""


def test_a_good_one_says_until_when(tmp_path: Path) -> None:
    files = certificates.write(tmp_path, "a.test", not_after=NOW + 3 * DAY)
    expires_at = certificate.check(files.cert, files.key)
    assert expires_at is not None
    assert abs(expires_at - (NOW + 3 * DAY).timestamp()) < 2
    assert 2.9 < (certificate.days_left(files.cert, files.key) or 0) < 3.1


def test_what_can_not_be_used_is_named_with_the_reason_and_refused_by_init(tmp_path: Path) -> None:
    good, other = (certificates.write(made(tmp_path / name), "a.test") for name in ("good", "other"))
    old = certificates.write(made(tmp_path / "old"), "a.test", not_before=NOW - 9 * DAY, not_after=NOW - DAY)
    new = certificates.write(made(tmp_path / "new"), "a.test", not_before=NOW + DAY, not_after=NOW + 9 * DAY)
    garbage = tmp_path / "garbage"
    garbage.write_text("not PEM")
    locked = tmp_path / "locked"
    locked.write_bytes(with_password(Path(good.key).read_bytes()))
    for cert, key, why in (
        (good.cert, other.key, "the key is not that of this certificate"),
        (old.cert, old.key, "has expired"),
        (new.cert, new.key, "is not valid yet"),
        (str(garbage), good.key, "there is no certificate in it"),
        (good.cert, str(garbage), "no private key"),
        (good.cert, None, "no private key"),
        (good.cert, str(locked), "protected by a password"),
    ):
        with pytest.raises(InvalidValueError, match=why) as raised:
            certificate.check(cert, key)
        assert cert in raised.value.message
        assert certificate.days_left(cert, key) == 0
        with pytest.raises(InvalidValueError, match=why):
            serve.init(http_port=0, ssl_certfile=cert, ssl_keyfile=key)


@pytest.mark.parametrize("label", ["X509 CERTIFICATE", "TRUSTED CERTIFICATE"])
def test_one_whose_digest_could_not_be_told_is_refused_before_it_is_shown(tmp_path: Path, label: str) -> None:
    files = certificates.write(tmp_path, "a.test")
    plain = Path(files.cert).read_text()
    other = plain.replace("BEGIN CERTIFICATE", f"BEGIN {label}").replace("END CERTIFICATE", f"END {label}")
    for text in (other, other + plain):  # the first is shown
        Path(files.cert).write_text(text)
        for use in (certificate.check, Certificate):
            with pytest.raises(InvalidValueError, match="must begin with -----BEGIN CERTIFICATE-----"):
                use(files.cert, files.key)


def with_password(key: bytes) -> bytes:
    from cryptography.hazmat.primitives import serialization as form

    opened = form.load_pem_private_key(key, None)
    return opened.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.BestAvailableEncryption(b"a password"))


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_what_was_renewed_is_shown_to_who_comes_later(tmp_path: Path) -> None:
    first = certificates.write(tmp_path, "a.test")
    shown = Certificate(first.cert, first.key)
    before, digest = shown_by(shown.context, first), shown.digest
    assert not shown.renew()
    second = certificates.write(tmp_path, "a.test")
    assert shown.renew()
    assert shown_by(shown.context, second) != before
    assert shown.digest != digest
    assert not shown.renew()


def test_what_can_not_be_used_changes_nothing_and_is_told_once(tmp_path: Path) -> None:
    first = certificates.write(tmp_path, "a.test")
    trusted = certificates.Files(first.cert, first.key, str(tmp_path / "trusted.pem"))
    Path(trusted.authority).write_bytes(Path(first.authority).read_bytes())
    shown = Certificate(first.cert, first.key)
    before, key = shown_by(shown.context, trusted), Path(first.key).read_bytes()
    certificates.write(tmp_path, "a.test")
    new_key = Path(first.key).read_bytes()
    Path(first.key).write_bytes(key)  # the certificate is new, its key not yet
    with pytest.raises(InvalidValueError, match="the key is not that of this certificate"):
        shown.renew()
    assert not shown.renew()
    assert shown_by(shown.context, trusted) == before
    Path(first.key).write_bytes(new_key)
    assert shown.renew()
    Path(first.cert).unlink()
    with pytest.raises(InvalidValueError, match="No such file"):
        shown.renew()
    assert shown_by(shown.context, first) != before


def test_it_is_looked_at_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(certificate, "LOOK_S", 0.01)
    files = certificates.write(tmp_path, "a.test")

    async def scene() -> None:
        shown = Certificate(files.cert, files.key)
        looking = asyncio.create_task(shown.keep_renewed())
        digest = shown.digest
        Path(files.cert).write_text("half of it")
        await until(lambda: "stays the one that was read before" in caplog.text, "it is told")
        certificates.write(tmp_path, "a.test")
        await until(lambda: shown.digest != digest, "it is renewed")
        looking.cancel()

    asyncio.run(scene())
    assert "half of it" not in caplog.text
