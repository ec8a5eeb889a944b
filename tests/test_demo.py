"""The demo's server."""

from examples.demo import server_command


def test_the_demo_is_for_this_machine_alone() -> None:
    """Without keys it listens on the loopback address, where BentoML by itself listens on every one."""
    command = server_command(3000)
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--port") + 1] == "3000"
