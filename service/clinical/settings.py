"""Settings of the clinical routes: environment variables `I2MOE_CDS_<NAME>`, checked once at start."""

import re

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.access.settings import Issuers, Listed, check_source

_ORIGIN = re.compile(r"\*|https?://[A-Za-z0-9.-]+(:[0-9]+)?")
_BASE_URL = re.compile(r"https?://[^\s?#]+[^\s?#/]")


class ClinicalSettings(BaseSettings):
    """How hospital systems reach the service, and which of them may."""

    model_config = SettingsConfigDict(env_prefix="I2MOE_CDS_", frozen=True, extra="ignore")

    public_url: str | None = Field(
        default=None,
        description="Base URL under which clients reach this service, for links in cards and as the audience of tokens.",
    )
    origins: Listed = Field(
        default=(), description="Browser origins that may call the CDS Hooks routes (CORS), separated by commas."
    )
    issuers: Issuers = Field(
        default={},
        description="Who may call: a JSON object of token issuers (`iss`) and their keys, each a JWKS file or an https URL. "
        "Empty: anybody.",
    )
    leeway_s: float = Field(
        default=10.0, ge=0, le=300, description="How far clocks of callers may be off when tokens are checked."
    )

    @field_validator("public_url")
    @classmethod
    def _is_base_url(cls, value: str | None) -> str | None:
        if value is not None and _BASE_URL.fullmatch(value) is None:
            raise ValueError("expected an http or https URL without a slash at its end")
        return value

    @field_validator("origins")
    @classmethod
    def _are_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if others := [origin for origin in value if _ORIGIN.fullmatch(origin) is None]:
            raise ValueError(f"expected origins such as https://sandbox.example or *, found {others[0]}")
        return value

    @field_validator("issuers")
    @classmethod
    def _have_keys(cls, value: dict[str, str]) -> dict[str, str]:
        for issuer, source in value.items():
            check_source(issuer, source)
        return value

    @model_validator(mode="after")
    def _tokens_have_an_audience(self) -> "ClinicalSettings":
        if self.issuers and self.public_url is None:
            raise ValueError("ISSUERS needs PUBLIC_URL, which tokens must name as their audience")
        return self
