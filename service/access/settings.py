"""Settings of access tokens: environment variables `I2MOE_OIDC_<NAME>`, checked once at start.

Also the kinds of values that these settings share with those of CDS Hooks: lists, and issuers with their keys.
"""

import json
import re
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service.access.jwks import DISCOVERY, HTTPS

_PREFIX = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]*")  # what a scope may hold (RFC 6749, section 3.3)


def _split(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _parsed(value: object) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise ValueError('expected a JSON object, such as {"https://ehr.example": "/keys/ehr.json"}') from None


Listed = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]  # separated by commas
Issuers = Annotated[dict[str, str], NoDecode, BeforeValidator(_parsed)]  # `iss` -> a JWKS file or an https URL


def check_source(issuer: str, source: str) -> None:
    """Raises `ValueError` where keys cannot lie there."""
    if not source.startswith(HTTPS) and not Path(source).is_file():
        raise ValueError(f"issuer {issuer}: expected an https URL or a JWKS file, found {source}")


class OidcSettings(BaseSettings):
    """Whose access tokens let callers in, and to what."""

    model_config = SettingsConfigDict(env_prefix="I2MOE_OIDC_", frozen=True, extra="ignore")

    issuers: Issuers = Field(
        default={},
        description="Whose tokens let in, beside API keys: a JSON object of issuers (`iss`) and their keys, each a JWKS file, an "
        "https URL, or an empty text for OpenID Connect discovery. Empty: nobody's.",
    )
    audience: Listed = Field(
        default=(), description="What tokens must name as their audience (`aud`), one of these, separated by commas."
    )
    scope_claim: Listed = Field(
        default=("scope", "scp"),
        description="Claims that hold scopes, separated by commas; dots lead into objects: `realm_access.roles`.",
    )
    scope_prefix: str = Field(
        default="i2moe.", description="What stands before a scope of this service in a token: `i2moe.predict` gives predict."
    )
    leeway_s: float = Field(default=10.0, ge=0, le=300, description="How far clocks of issuers may be off.")
    max_lifetime_s: float | None = Field(
        default=None, gt=0, description="How long a token may be valid in all (`exp` less `iat`). Not set: as long as it says."
    )
    per_second: float | None = Field(
        default=None,
        ge=1e-6,
        le=1e6,
        description="Requests a second on average of one subject. Not set: as many as the service takes.",
    )
    burst: int = Field(default=20, ge=1, le=1_000_000, description="Requests of one subject at once after a pause.")

    @field_validator("issuers")
    @classmethod
    def _have_keys(cls, value: dict[str, str]) -> dict[str, str]:
        for issuer, source in value.items():
            if source != DISCOVERY:
                check_source(issuer, source)
            elif not issuer.startswith(HTTPS):
                raise ValueError(f"issuer {issuer}: expected an https URL, from which its keys are discovered")
        return value

    @field_validator("scope_prefix")
    @classmethod
    def _is_of_a_scope(cls, value: str) -> str:
        if _PREFIX.fullmatch(value) is None:
            raise ValueError("expected visible characters without quotes and backslashes, as in a scope")
        return value

    @model_validator(mode="after")
    def _tokens_have_an_audience(self) -> Self:
        if self.issuers and not (self.audience and self.scope_claim):
            raise ValueError("ISSUERS needs AUDIENCE, which tokens must name, and at least one SCOPE_CLAIM")
        return self
