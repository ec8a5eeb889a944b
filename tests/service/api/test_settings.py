import logging
from pathlib import Path

import pytest
from pydantic import ValidationError

from service.api.runtime import Runtime
from service.api.settings import Settings, read_settings, unknown_variables, usable_cpus


def test_every_setting_is_described() -> None:
    """Who reads the table finds a sentence for each variable."""
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """I2MOE_<NAME> sets <name>, with its type."""
    monkeypatch.setenv("I2MOE_BUNDLE", "/models/a")
    monkeypatch.setenv("I2MOE_REQUIRE_GPU", "1")
    monkeypatch.setenv("I2MOE_MAX_WAIT_MS", "2.5")
    settings, problem = read_settings()
    assert problem is None
    assert (settings.bundle, settings.require_gpu, settings.max_wait_ms) == (Path("/models/a"), True, 2.5)


def test_the_defaults_wait_for_nothing_and_use_the_cores() -> None:
    """Without variables the service is usable as it is."""
    settings = Settings()
    assert settings.max_wait_ms == 0
    assert 1 <= settings.num_threads <= usable_cpus()
    assert settings.queue_max >= settings.max_instances


@pytest.mark.parametrize(("cores", "workers", "threads"), [(1, 1, 1), (2, 1, 1), (4, 1, 3), (8, 2, 3), (64, 1, 8)])
def test_one_core_of_a_workers_share_is_left_to_requests(
    monkeypatch: pytest.MonkeyPatch, cores: int, workers: int, threads: int
) -> None:
    """Batches are computed by the rest, up to a number beyond which nothing is gained."""
    monkeypatch.setattr("service.api.settings.usable_cpus", lambda: cores)
    assert Settings(workers=workers).num_threads == threads


def test_workers_share_the_cores() -> None:
    """More serving processes have fewer threads each, never none."""
    assert Settings(workers=1000).num_threads == 1
    assert Settings(workers=1000, num_threads=3).num_threads == 3


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("I2MOE_PROVIDER", "gpu"),
        ("I2MOE_MAX_BATCH_SIZE", "0"),
        ("I2MOE_TIMEOUT_S", "soon"),
        ("I2MOE_QUEUE_MAX", "10"),
        ("I2MOE_AUDIT_KEEP_DAYS", "1e9"),
        ("I2MOE_OUTCOMES_DELAY_DAYS", "400"),
    ],
)
def test_a_bad_setting_is_told_in_one_sentence(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """The variable is named; the defaults stand in, so that the process can live and say so."""
    monkeypatch.setenv(name, value)
    settings, problem = read_settings()
    assert settings == Settings.model_construct()
    assert problem is not None
    assert name.removeprefix("I2MOE_") in problem
    assert "\n" not in problem
    with pytest.raises(ValidationError):
        Settings()


def test_misspelt_variables_are_found() -> None:
    """Only I2MOE_ variables that no setting reads are named."""
    environment = {"I2MOE_BUNDLE": "b", "I2MOE_MAX_BATCHSIZE": "1", "PATH": "/bin", "i2moe_timeout_s": "1"}
    assert unknown_variables(environment) == ["I2MOE_MAX_BATCHSIZE"]


def test_misspelt_variables_are_warned_about_at_start(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The runtime logs one warning for each."""
    monkeypatch.setenv("I2MOE_MAX_BATCHSIZE", "1")
    logger = logging.getLogger("i2moe")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr("service.api.runtime.configure_logging", lambda level, form: None)
    Runtime.from_environment()
    assert "I2MOE_MAX_BATCHSIZE is not a setting of this service and is ignored" in caplog.text
