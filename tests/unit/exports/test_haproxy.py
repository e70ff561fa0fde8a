"""`loopwright export haproxy`: what it writes is what HAProxy takes, and nothing that was handed in adds a line."""

import json
import re
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import example, given, settings
from hypothesis import strategies as st

from loopwright.cli.commands import loopwright
from loopwright.exports.balancer import Address, Balancer, Stick, backends_of, parse_address
from loopwright.exports.haproxy import haproxy_config
from loopwright.kernel.errors import BadInput

THREE = ["10.0.0.1:8081", "10.0.0.2:8081", "[fd00::3]:8081"]


def balancer(*addresses: str, weights: tuple[str, ...] = (), **options: Any) -> Balancer:
    return Balancer(backends=backends_of(addresses or THREE, weights), **options)


def haproxy() -> str:
    found = shutil.which(
        "haproxy", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin:/opt/homebrew/bin"
    )
    if found is None:
        pytest.fail("haproxy is not installed: run scripts/test-services (Debian: apt-get install haproxy)")
    return found


def servers(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines() if line.strip().startswith("server ")]


@pytest.mark.parametrize("stick", list(Stick))
def test_haproxy_takes_what_is_written_without_a_warning(tmp_path: Path, stick: Stick) -> None:
    every: list[dict[str, Any]] = [
        {"stick": stick, "grpc": parse_address("127.0.0.1:9001")},
        {
            "stick": stick, "retries": 0, "slow_start": timedelta(), "metrics": None, "user": "root",
            "stats": parse_address("127.0.0.1:9000"), "grpc": parse_address("127.0.0.1:9001"),
            "admin_socket": str(tmp_path / "admin.sock"),
            "check_every": timedelta(milliseconds=50), "overrides": True, "certificate": str(certificate(tmp_path)),
        },
    ]  # fmt: skip
    for options in every:
        path = tmp_path / "haproxy.cfg"
        path.write_text(
            haproxy_config(balancer("localhost:8081", *THREE, weights=("10.0.0.2:8081=0",), **options))
        )
        # -dW: warnings are errors.
        done = subprocess.run(
            [haproxy(), "-dW", "-c", "-f", str(path)], capture_output=True, text=True, timeout=30
        )
        assert done.returncode == 0, done.stderr + done.stdout


def certificate(folder: Path) -> Path:
    path = folder / "site.pem"
    if not path.exists():
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
        now, later = datetime.now(UTC), datetime(2099, 1, 1, tzinfo=UTC)
        made = x509.CertificateBuilder(name, name, key.public_key(), 1, now, later).sign(key, hashes.SHA256())
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        path.write_bytes(made.public_bytes(serialization.Encoding.PEM) + private)
    return path


def test_a_place_on_the_ring_follows_from_the_address_alone() -> None:
    def ids(*addresses: str) -> dict[str, str]:
        return {line[1]: line[line.index("id") + 1] for line in servers(haproxy_config(balancer(*addresses)))}

    three, two = ids("a:1", "b:1", "c:1"), ids("c:1", "a:1")
    assert len(set(three.values())) == 3
    assert two == {name: three[name] for name in ("c:1", "a:1")}


def test_weights_are_those_that_were_given() -> None:
    lines = servers(haproxy_config(balancer(weights=("10.0.0.2:8081=0", "[fd00:0:0::3]:8081=256"))))
    assert [line[line.index("weight") + 1] for line in lines] == ["100", "0", "256"]


@pytest.mark.parametrize(("stick", "wanted", "unwanted"), [
    (Stick.UNIT_HEADER, "balance hdr(X-Loopwright-Unit)\n    hash-type consistent", "cookie LOOPWRIGHT"),
    (Stick.COOKIE, "cookie LOOPWRIGHT insert indirect nocache httponly\n", "hash-type"),
    (Stick.NONE, "balance random(2)", "cookie LOOPWRIGHT"),
])  # fmt: skip
def test_users_stick_by_what_was_chosen(stick: Stick, wanted: str, unwanted: str) -> None:
    text = haproxy_config(balancer(stick=stick))
    assert wanted in text
    assert unwanted not in text


def test_a_cookie_is_sent_over_tls_only_where_there_is_tls(tmp_path: Path) -> None:
    text = haproxy_config(balancer(stick=Stick.COOKIE, certificate="/etc/site.pem"))
    assert "httponly secure" in text
    assert "bind *:8080 ssl crt /etc/site.pem" in text


def test_what_is_open_by_default_is_only_the_port_and_metrics_on_this_machine() -> None:
    text = haproxy_config(balancer())
    assert re.findall(r"bind (\S+)", text) == ["*:8080", "127.0.0.1:8405"]
    assert "stats" not in text


def test_grpc_goes_to_the_other_port_of_each_replica_and_readiness_is_asked_over_http() -> None:
    text = haproxy_config(balancer("a:8081", "b:9081", grpc=parse_address("127.0.0.1:9001"), grpc_port=7000))
    lines = {line[2]: line for line in servers(text)}
    assert lines.keys() == {"a:8081", "b:9081", "a:7000", "b:7000"}
    assert lines["b:7000"][-5:] == ["h2", "port", "9081", "check-proto", "h1"]
    assert lines["b:7000"][3:7] == lines["b:9081"][3:7], "one place on the ring for both"
    assert "bind 127.0.0.1:9001 proto h2" in text


def test_the_time_to_drain_covers_the_time_to_notice() -> None:
    slow, fast = balancer(check_every=timedelta(seconds=5)), balancer(check_every=timedelta(seconds=0.2))
    assert slow.notices_after == pytest.approx(5 + 1 + 1.25 + 1)
    assert fast.notices_after == pytest.approx(0.2 + 0.2 + 0.05 + 0.2)
    for each in (slow, fast):
        assert each.drain_seconds > each.notices_after
        assert f"--drain-seconds {each.drain_seconds} or more" in haproxy_config(each)


@pytest.mark.parametrize("text", [
    "", "host", ":8081", "10.0.0.1:", "10.0.0.1:0", "10.0.0.1:65536", "10.0.0.1:８０", "10.0.0.999:80", "a b:80",
    "a\n    server evil 6.6.6.6:80:80", "a#b:80", "-a:80", "a..b:80", "[10.0.0.1:80", "fe80::1%eth0:80", "$HOME:80",
    "\"x\":80", "a:80 backup", "x" * 64 + ":80", "*:80", "a_b:80", "/run/x.sock:80", "ipv4@1.2.3.4:80", "[a.b]:80",
])  # fmt: skip
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="--backend"):
        parse_address(text)


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=40), st.integers(0, 99999))
@example("a\nserver", 80)
@example("::ffff:1.2.3.4", 80)
def test_no_address_adds_a_word_to_the_configuration(host: str, port: int) -> None:
    try:
        address = parse_address(f"{host}:{port}")
    except BadInput:
        return
    assert re.fullmatch(r"[0-9a-z.-]+:[0-9]+|\[[0-9a-f:.]+\]:[0-9]+", str(address))
    text = haproxy_config(Balancer(backends=backends_of([str(address)], [])))
    (line,) = servers(text)
    assert line[2] == str(address)
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(("options", "where"), [
    ({"certificate": "/etc/a b.pem"}, "--tls"), ({"certificate": "relative.pem"}, "--tls"),
    ({"admin_socket": "/run/x\nuser root"}, "--admin-socket"), ({"user": "root\n"}, "--user"),
    ({"retries": 11}, "--retries"), ({"buffer": 1}, "--buffer"), ({"timeout": timedelta()}, "--timeout"),
    ({"grpc": Address("127.0.0.1", 8080)}, "--grpc-port"), ({"grpc_port": 0}, "--grpc-backend-port"),
    ({"check_every": timedelta(days=1)}, "--check-every"), ({"max_connections": 0}, "--max-connections"),
    ({"metrics": Address("127.0.0.1", 8080)}, "--metrics"),
])  # fmt: skip
def test_what_cannot_be_meant_is_refused_with_the_option_that_said_it(
    options: dict[str, Any], where: str
) -> None:
    with pytest.raises(BadInput) as error:
        balancer(**options)
    assert error.value.where == where


@pytest.mark.parametrize(("addresses", "weights", "why"), [
    (["a:1", "A:1"], [], "named twice"), (["a:1", "a.:1"], [], "named twice"),
    (["[::1]:1", "[0:0::1]:1"], [], "named twice"), (["a:1"], ["b:1=3"], "a weight for no replica"),
    (["a:1"], ["a:1=257"], "not a weight"), (["a:1"], ["a:1=-1"], "not a weight"), (["a:1"], ["a:1"], "not a"),
    (["a:1"], ["a:1=1", "a:1=2"], "two weights"), (["a:1"], ["a:1=0"], "no replica gets any"), ([], [], "no replica"),
])  # fmt: skip
def test_replicas_and_weights_that_contradict_each_other_are_refused(
    addresses: list[str], weights: list[str], why: str
) -> None:
    with pytest.raises(BadInput, match=why):
        Balancer(backends=backends_of(addresses, weights))


def run(*arguments: str) -> Any:
    return CliRunner().invoke(loopwright, ["export", "haproxy", *arguments])


def test_the_command_prints_writes_and_shows_the_same(tmp_path: Path) -> None:
    given_ = ["--backend", THREE[0], "--backend", THREE[1], "--port", "9090", "--weight", f"{THREE[1]}=7"]
    printed = run(*given_)
    assert printed.exit_code == 0, printed.output
    path = tmp_path / "deep" / "haproxy.cfg"
    written = run(*given_, "--out", str(path))
    assert path.read_text() == printed.stdout
    assert (written.stdout, f"haproxy -c -f {path}" in written.stderr) == ("", True)
    shown = json.loads(run(*given_, "--json").stdout)
    assert shown["config"] == printed.stdout
    assert (shown["listen"], shown["stick"], shown["metrics"]) == ("*:9090", "unit-header", "127.0.0.1:8405")
    assert [each["weight"] for each in shown["backends"]] == [100, 7]
    assert run(*given_).stdout == printed.stdout


@pytest.mark.parametrize(("option", "value"), [
    ("--backend", "nowhere"), ("--host", "a b"), ("--port", "70000"), ("--timeout", "soon"), ("--buffer", "1XB"),
    ("--metrics", "everywhere"), ("--grpc-port", "0"), ("--stats", ":1"), ("--tls", "x.pem"),
    ("--weight", "10.0.0.1:8081=lots"),
])  # fmt: skip
def test_a_bad_option_of_the_command_names_itself(option: str, value: str) -> None:
    done = run("--backend", THREE[0], option, value)
    assert isinstance(done.exception, BadInput)
    assert option in str(done.exception) or (option == "--host" and "--port" in str(done.exception))


def test_spans_are_written_in_whole_milliseconds() -> None:
    spans = [timedelta(seconds=1.5), timedelta(milliseconds=50), timedelta(minutes=1)]
    for one, other in product(spans, spans):
        text = haproxy_config(balancer(timeout=one, connect_timeout=other))
        assert f"timeout server {one // timedelta(milliseconds=1)}ms\n" in text
        assert f"timeout connect {other // timedelta(milliseconds=1)}ms\n" in text


def test_sections_come_one_after_another_with_an_empty_line_between() -> None:
    lines = haproxy_config(balancer()).splitlines()
    heads = [i for i, line in enumerate(lines) if line and not line.startswith((" ", "#"))]
    assert [lines[i] for i in heads] == [
        "global", "defaults", "frontend predictions", "backend replicas", "frontend metrics",
    ]  # fmt: skip
    assert all(lines[b - 1] == "" for _, b in pairwise(heads))
