"""Every setting of the service: an environment variable `I2MOE_<NAME>`, checked once at start."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.access.settings import OidcSettings
from service.bundle.machine import usable_cpus
from service.clinical.settings import ClinicalSettings

ENV_PREFIX = "I2MOE_"
_MAX_DAYS = 36_500.0  # a century; calendars end
_MAX_DEFAULT_THREADS = 8  # models of this size do not get faster beyond it


def _default_num_threads(validated: dict[str, Any]) -> int:
    """A worker's share of the cores but for one, which its event loop keeps busy when there is much to compute."""
    num_workers: int = validated.get("workers", 1)
    return max(1, min(usable_cpus() // num_workers - 1, _MAX_DEFAULT_THREADS))


class Settings(BaseSettings):
    """How one serving process behaves."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="ignore")

    bundle: Path | None = Field(
        default=None, description="Folder of the bundle to serve, or a folder of bundles, of which the last created is. Required."
    )
    bundle_version: str | None = Field(default=None, description="Of a folder of bundles: serve this version and no other.")
    watch_s: float = Field(
        default=0.0,
        ge=0,
        le=3600,
        description="How often I2MOE_BUNDLE is looked at; another bundle there takes over without a failed request. 0: never.",
    )
    shadow_bundle: Path | None = Field(
        default=None,
        description="A bundle, or a folder of bundles, that silently scores what is served, see docs/deploy.md.",
    )
    shadow_share: float = Field(default=1.0, gt=0, le=1, description="Share of requests that I2MOE_SHADOW_BUNDLE scores, too.")
    provider: Literal["auto", "cuda", "cpu"] = Field(
        default="auto", description="Where the graph runs; `auto` takes the GPU when there is one that works, else the CPU."
    )
    require_gpu: bool = Field(default=False, description="Never become ready on the CPU.")
    max_batch_size: int = Field(default=64, ge=1, description="Samples that go through the graph in one pass at most.")
    max_wait_ms: float = Field(
        default=0.0,
        ge=0,
        le=1000,
        description="How long a sample may wait for company while nothing runs. 0: not at all; what arrives while a batch "
        "runs forms the next batch.",
    )
    queue_max: int = Field(default=1024, ge=1, description="Samples that may wait; beyond it requests get 503 and Retry-After.")
    max_instances: int = Field(default=256, ge=1, description="Instances in one request at most.")
    max_body_bytes: int = Field(default=2_000_000, ge=1, description="Size of a request body at most; beyond it 413.")
    timeout_s: float = Field(
        default=10.0, gt=0, le=3600, description="Time for one request, from first byte to answer; then 504."
    )
    workers: int = Field(default=1, ge=1, description="Serving processes. Each loads the model and forms its own batches.")
    num_threads: int = Field(
        default_factory=_default_num_threads,
        ge=1,
        description="Threads that compute one batch on the CPU. Default: the usable cores shared among the workers, less one for "
        "requests, 8 at most.",
    )
    page: bool = Field(
        default=True,
        description="Serve pages for people: GET /, and GET /model-card to browsers. false: GET / leads to /docs.json.",
    )
    api_keys: Path | None = Field(
        default=None,
        description="File of API keys, see docs/security.md. Without it and without I2MOE_OIDC_ISSUERS everybody may call all "
        "but audit and admin.",
    )
    audit_url: SecretStr | None = Field(
        default=None,
        description="Where every prediction is kept, see docs/audit.md: `sqlite:////var/lib/i2moe/predictions.db` or "
        "`postgresql+psycopg://user:password@host/database`. Without it none is.",
    )
    audit_required: bool = Field(default=True, description="Answer no prediction that is not kept; false: keep what can be kept.")
    audit_features: bool = Field(default=False, description="Keep also what was asked: patients' values.")
    audit_keep_days: float = Field(
        default=400.0, gt=0, le=_MAX_DAYS, description="After how many days a kept prediction is deleted."
    )
    outcomes_days: float = Field(
        default=90.0, gt=0, le=_MAX_DAYS, description="How far back predictions with outcomes count in the figures of /metrics."
    )
    outcomes_delay_days: float = Field(
        default=0.0,
        ge=0,
        le=_MAX_DAYS,
        description="How old a prediction must be to count there: the days it foretells. Sooner only early events are known.",
    )
    outcomes_every_s: float = Field(default=300.0, gt=0, description="How often these figures are computed.")
    access_log: bool = Field(default=False, description="Log one line per request: method, route, status, time, request id.")
    traces: bool | None = Field(
        default=None,
        description="Export traces to OTEL_EXPORTER_OTLP_ENDPOINT, see docs/operations.md; not set: where that variable is.",
    )
    log_format: Literal["text", "json"] = Field(
        default="text", description="Lines of text, or one JSON object per line, see docs/operations.md."
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", description="How much is logged. No level logs a patient's values."
    )

    @model_validator(mode="after")
    def _predictions_are_kept_until_they_count(self) -> "Settings":
        if self.outcomes_delay_days >= self.audit_keep_days:
            raise ValueError(
                f"OUTCOMES_DELAY_DAYS ({self.outcomes_delay_days:g}) must be below AUDIT_KEEP_DAYS ({self.audit_keep_days:g}): "
                "no prediction would be kept until it counts"
            )
        return self

    @model_validator(mode="after")
    def _a_full_request_fits_the_queue(self) -> "Settings":
        if self.queue_max < self.max_instances:
            raise ValueError(f"QUEUE_MAX ({self.queue_max}) must be at least MAX_INSTANCES ({self.max_instances})")
        return self


def is_set(name: str, environ: Mapping[str, str]) -> bool:
    """Whether the environment says anything of a setting, also where it cannot be read."""
    return f"{ENV_PREFIX}{name}" in {variable.upper() for variable in environ}


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """`I2MOE_*` variables that name no setting: probably misspelt."""
    known = {f"{kind.model_config['env_prefix']}{name}".upper() for kind in SETTINGS for name in kind.model_fields}
    return sorted(name for name in environ if name.upper().startswith(ENV_PREFIX) and name.upper() not in known)


SETTINGS: tuple[type[BaseSettings], ...] = (Settings, ClinicalSettings, OidcSettings)
_S = TypeVar("_S", Settings, ClinicalSettings, OidcSettings)


def read_settings() -> tuple[Settings, str | None]:
    """The settings of this environment; where they cannot be read, the defaults and one sentence saying why."""
    return _read(Settings)


def read_clinical_settings() -> tuple[ClinicalSettings, str | None]:
    """The same for the clinical routes."""
    return _read(ClinicalSettings)


def read_oidc_settings() -> tuple[OidcSettings | None, str | None]:
    """The same for access tokens; None where they let nobody in because nobody asked for it."""
    settings, problem = _read(OidcSettings)
    return settings if settings.issuers or problem else None, problem


def _read(kind: type[_S]) -> tuple[_S, str | None]:
    try:
        return kind(), None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        prefix = kind.model_config["env_prefix"]
        place = ".".join(f"{prefix}{part}".upper() for part in first["loc"]) or "the settings"
        return kind.model_construct(), f"{place}: {first['msg']}"
