"""The proxy before the service: answers pass as they are, refusals of its own have the service's shape, and bounds hold."""

import json
import re
import signal
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy.compose.certificate import CERTIFICATE, KEY, make_certificate
from service.api.settings import Settings
from tests.deploy.proxy import CONFIGURATION, Proxy, running_proxy
from tests.service.api.error_shape import assert_error
from tests.serving import Server, free_port, running_server
from tests.tiny_bundle import EXAMPLE_RISK, tiny_example, write_tiny_bundle

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service; what waits, waits a second."""
    folder = tmp_path_factory.mktemp("service")
    with running_server(write_tiny_bundle(folder / "bundle").path, folder, environment={"I2MOE_MAX_WAIT_MS": "1000"}) as server:
        yield server


@pytest.fixture(scope="module")
def proxy(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A proxy that lets four requests through at once."""
    changes = {"limit_conn scoring 256;": "limit_conn scoring 4;"}
    with running_proxy(tmp_path_factory.mktemp("proxy"), service_port=int(server.url.rpartition(":")[2]), changes=changes) as it:
        yield it


def post(proxy: Proxy, document: Any, **options: Any) -> httpx.Response:
    return httpx.post(f"{proxy.url}/predict", json=document, verify=proxy.trust, timeout=10, **options)


def test_an_answer_passes_as_it_is(proxy: Proxy) -> None:
    """The risk, the client's request id, and the service's own refusals."""
    answer = post(proxy, tiny_example(), headers={"X-Request-ID": "visit-1"})
    assert answer.status_code == 200
    assert answer.json()["predictions"][0]["probability"] == EXAMPLE_RISK
    assert answer.headers["x-request-id"] == answer.json()["request_id"] == "visit-1"
    assert "max-age" in answer.headers["strict-transport-security"]
    assert_error(post(proxy, {"labs": {"unknown": 1}}), 422, "INVALID_INPUT")


def connect(proxy: Proxy) -> ssl.SSLSocket:
    """A connection on which nothing is asked."""
    plain = socket.create_connection(("127.0.0.1", proxy.port), timeout=10)
    return proxy.trust.wrap_socket(plain, server_hostname="127.0.0.1")


def begin(proxy: Proxy, body: bytes, *, more: str = "") -> ssl.SSLSocket:
    """A request to /predict of which the first byte of the body is sent."""
    connection = connect(proxy)
    head = f"POST /predict HTTP/1.1\r\nHost: t\r\nConnection: close\r\nContent-Type: application/json\r\n{more}"
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:1])
    return connection


def wait_for(proxy: Proxy, status: int) -> httpx.Response:
    """The first answer of this status; the proxy hears of connections when it gets round to it."""
    give_up = time.monotonic() + 10
    while (answer := post(proxy, tiny_example())).status_code != status and time.monotonic() < give_up:
        time.sleep(0.1)
    assert answer.status_code == status
    return answer


def test_more_than_it_lets_through_is_refused_in_the_services_shape(proxy: Proxy) -> None:
    """While four are on their way: 503 with Retry-After, and the four are answered."""
    body = json.dumps(tiny_example()).encode()
    begun = [begin(proxy, body) for _ in range(4)]
    refused = wait_for(proxy, 503)
    assert "too many requests" in assert_error(refused, 503, "OVERLOADED")["error"]
    assert refused.headers["retry-after"] == "1"
    assert httpx.get(f"{proxy.url}/model", verify=proxy.trust).status_code == 200
    for connection in begun:
        connection.sendall(body[1:])
    for connection in begun:
        with connection, connection.makefile("rb") as answer:
            assert answer.readline().startswith(b"HTTP/1.1 200")


def test_what_is_too_large_is_refused_in_the_services_shape(proxy: Proxy) -> None:
    """A body of 50 MB and a header of 50 kB; the service sees neither."""
    body = httpx.post(f"{proxy.url}/predict", content=b"0" * (50 << 20), verify=proxy.trust, timeout=30)
    assert_error(body, 413, "BODY_TOO_LARGE")
    header = httpx.get(f"{proxy.url}/model", headers={"X-Long": "x" * 50_000}, verify=proxy.trust)
    assert_error(header, 400, "INVALID_JSON")


@pytest.mark.parametrize(
    "path", ["/metrics", "/admin/reload", "/metrics%0A", "/admin/reload%0A", "//metrics", "/v2/..%2fmetrics"]
)
def test_what_is_for_the_inside_is_not_there(proxy: Proxy, path: str) -> None:
    """Whatever key a caller has."""
    assert_error(httpx.post(f"{proxy.url}{path}", verify=proxy.trust), 404, "NOT_FOUND")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
def test_old_versions_of_tls_are_refused(proxy: Proxy) -> None:
    """1.2 and 1.3 alone."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(proxy.certificate)
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as plain, pytest.raises(ssl.SSLError):
        context.wrap_socket(plain, server_hostname="127.0.0.1")


def test_clients_that_stall_never_reach_the_service(proxy: Proxy, server: Server) -> None:
    """A body that does not come stays with the proxy, and its place is free again when the client has gone."""
    before = _num_requests(server)
    stalled = [begin(proxy, b"{" * 99) for _ in range(20)]
    assert server.post("/predict", tiny_example()).status_code == 200
    for connection in stalled:
        connection.close()
    assert _num_requests(server) == before + 1
    wait_for(proxy, 200)


def _num_requests(server: Server) -> float:
    """To /predict, whatever became of them."""
    counted = [line for line in server.get("/metrics").text.splitlines() if 'duration_seconds_count{route="/predict"' in line]
    return sum(float(line.rpartition(" ")[2]) for line in counted)


def test_a_service_that_is_away_is_told_in_the_services_shape(tmp_path: Path) -> None:
    """503, so that clients try again later."""
    with running_proxy(tmp_path / "alone", service_port=free_port()) as alone:
        answer = post(alone, tiny_example())
    assert_error(answer, 503, "MODEL_NOT_READY")
    assert answer.headers["retry-after"] == "5"


def test_the_proxy_lives_while_the_service_does_not(tmp_path: Path) -> None:
    """A probe of the proxy alone, or a cluster would start nginx again whenever the service is away."""
    with running_proxy(tmp_path / "alone", service_port=free_port()) as alone:
        assert httpx.get(f"{alone.url}/proxy-livez", verify=alone.trust).status_code == 200
        assert httpx.get(f"{alone.url}/readyz", verify=alone.trust).status_code == 503


def served(proxy: Proxy) -> str:
    """The certificate that a new connection gets."""
    return ssl.get_server_certificate(("127.0.0.1", proxy.port), timeout=5).strip()


def test_a_renewed_certificate_is_served_and_a_pair_that_does_not_fit_is_not(server: Server, tmp_path: Path) -> None:
    """Without a restart; what is half copied leaves the one before, and SIGQUIT ends the container's first process."""
    folder, next_one = tmp_path / "proxy", tmp_path / "next"
    make_certificate(next_one, names=["127.0.0.1"])
    second = (next_one / CERTIFICATE).read_text().strip()
    with running_proxy(folder, service_port=int(server.url.rpartition(":")[2]), by_script=True) as proxy:
        first = served(proxy)
        (next_one / CERTIFICATE).replace(folder / "tls" / CERTIFICATE)
        wait_until(lambda: "key values mismatch" in (folder / "nginx.log").read_text())
        assert served(proxy) == first != second
        (next_one / KEY).replace(folder / "tls" / KEY)
        wait_until(lambda: served(proxy) == second)
        assert post(proxy, tiny_example()).status_code == 200
        proxy.process.send_signal(signal.SIGQUIT)
        assert proxy.process.wait(20) == 0


def test_a_reload_answers_what_is_begun_and_lets_go_of_kept_connections(server: Server, tmp_path: Path) -> None:
    """What a pod that leaves does first, while the service still answers; whoever comes by then is served."""
    body = json.dumps(tiny_example()).encode()
    with running_proxy(tmp_path / "proxy", service_port=int(server.url.rpartition(":")[2])) as proxy:
        begun, kept = begin(proxy, body, more="Expect: 100-continue\r\n"), connect(proxy)
        assert begun.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"  # nginx has read its head
        kept.sendall(b"GET /proxy-livez HTTP/1.1\r\nHost: t\r\n\r\n")
        assert b"keep-alive" in kept.recv(1000)
        proxy.process.send_signal(signal.SIGHUP)  # as `nginx -s reload` does
        with kept:
            assert kept.recv(1) == b""
        assert post(proxy, tiny_example()).status_code == 200
        begun.sendall(body[1:])
        with begun, begun.makefile("rb") as answer:
            assert answer.readline().startswith(b"HTTP/1.1 200")


def wait_until(true: Callable[[], bool]) -> None:
    """Fails where it does not become true."""
    give_up = time.monotonic() + 20
    while not true():
        assert time.monotonic() < give_up
        time.sleep(0.1)


def directive(name: str) -> str:
    """The one value that the configuration has for a directive."""
    (value,) = set(re.findall(rf"(?m)^ *{name} ([^;]+);", CONFIGURATION.read_text()))
    return str(value)


def test_bounds_agree_with_the_services() -> None:
    """A body that the service takes passes, one a tenth larger does not; nginx waits longer than the service's deadline."""
    settings = Settings()
    bytes_ = int(directive("client_max_body_size").removesuffix("m")) << 20
    assert settings.max_body_bytes <= bytes_ < 1.1 * settings.max_body_bytes
    assert directive("client_body_buffer_size") == directive("client_max_body_size")
    assert int(directive("proxy_read_timeout").removesuffix("s")) > settings.timeout_s


def test_a_body_never_reaches_a_disk() -> None:
    """Buffers hold what may be sent, and answers are not put aside."""
    text = CONFIGURATION.read_text()
    assert "client_max_body_size 2m;" in text
    assert "client_body_buffer_size 2m;" in text
    assert "proxy_max_temp_file_size 0;" in text
    for line in (line for line in text.splitlines() if "return " in line and "'" in line):
        json.loads(line.partition("'")[2].rpartition("'")[0])
