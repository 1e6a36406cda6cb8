"""Bodies and answers of the tenancy API. Lengths bound what is read; whether a value is right, the database says."""

from datetime import datetime
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, SecretStr, StringConstraints


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("a NUL character is not text")
    return text


MOST_GRACE_DAYS = 36_500
"""As close_tenant says: a hundred years."""


def _encodable(secret: SecretStr) -> SecretStr:
    """A plain text is checked by pydantic, a secret is not."""
    try:
        secret.get_secret_value().encode()
    except UnicodeEncodeError:
        raise ValueError("half a surrogate pair is not text") from None
    return secret


_NUL = AfterValidator(_without_nul)
_ENCODABLE = AfterValidator(_encodable)
Slug = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=63), _NUL]
Email = Annotated[str, StringConstraints(strip_whitespace=True, min_length=3, max_length=254), _NUL]
Name = Annotated[str, StringConstraints(strip_whitespace=True, max_length=200), _NUL]
Password = Annotated[SecretStr, Field(max_length=1024), _ENCODABLE]
Token = Annotated[SecretStr, Field(min_length=1, max_length=200), _ENCODABLE]
Scope = Literal["chat", "read", "admin", "act_as", "act_as:create"]


class Body(BaseModel):
    """A request; a field it does not know is refused, so that a misspelt one is not passed over."""

    model_config = ConfigDict(extra="forbid")


class Answer(BaseModel):
    @classmethod
    def of(cls, row: Any) -> Self:
        """From a row of the store."""
        return cls.model_validate(dict(row))


class RegisterBody(Body):
    tenant: Slug = "default"
    email: Email
    password: Password
    display_name: Name = ""


class Registered(Answer):
    tenant_id: UUID
    user_id: UUID


class SignInBody(Body):
    tenant: Slug = "default"
    email: Email
    password: Password


class RefreshBody(Body):
    refresh_token: Token


class TokensAnswer(Answer):
    """Shown once. `expires_at` is the access token's; the refresh token lives 30 days and is used once."""

    access_token: str
    refresh_token: str
    token_type: Literal["bearer"] = "bearer"  # noqa: S105
    expires_at: datetime
    must_change_password: bool


class PasswordBody(Body):
    old_password: Password
    new_password: Password


class RedeemBody(Body):
    token: Token
    new_password: Password


class Redeemed(Answer):
    tenant: str
    email: str | None


class ForgotBody(Body):
    tenant: Slug = "default"
    email: Email


class Me(Answer):
    """Who the caller is; `scopes` is null for people, who may do what their role may."""

    id: UUID
    tenant_id: UUID
    tenant: str
    tenant_name: str
    email: str | None
    display_name: str
    role: str
    scopes: list[str] | None


class MeBody(Body):
    display_name: Name


class UserBody(Body):
    email: Email | None = None
    external_id: Annotated[str, StringConstraints(min_length=1, max_length=128), _NUL] | None = None
    display_name: Name = ""
    role: Literal["user", "admin", "superadmin"] = "user"
    level_id: UUID | None = None
    password: Password | None = None
    must_change_password: bool = True


class UserPatch(Body):
    role: Literal["user", "admin"] | None = None
    status: Literal["active", "disabled"] | None = None


class User(Answer):
    id: UUID
    email: str | None
    external_id: str | None
    display_name: str
    role: str
    status: str
    must_change_password: bool
    last_sign_in_at: datetime | None
    created_at: datetime


class Erased(Answer):
    """What ended. `wallet` is closed, or suspended while `open_holds` are open; `debt` stays as it is."""

    user_id: UUID
    sessions: int
    keys: int
    wallet: str | None = None
    open_holds: int = 0
    voided_tokens: int = 0
    debt: int = 0


class PasswordLink(Answer):
    """Shown once. `url` is a path when VANILLA_SAAS_PUBLIC_URL is not set."""

    token: str
    url: str
    expires_at: datetime


class TenantBody(Body):
    slug: Slug
    name: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200), _NUL]
    time_zone: Annotated[str, StringConstraints(max_length=64), _NUL] = "UTC"


class TenantPatch(Body):
    status: Literal["active", "suspended"]


class Tenant(Answer):
    id: UUID
    slug: str
    name: str
    status: str
    time_zone: str
    self_registration: bool
    created_at: datetime
    erase_at: datetime | None
    erased_at: datetime | None


Why = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=500), _NUL]


class CloseBody(Body):
    """`grace_days`: how long it can be opened again; the platform's setting tenants.grace_days without it."""

    reason: Why
    grace_days: Annotated[int, Field(ge=0, le=MOST_GRACE_DAYS)] | None = None


class OpenBody(Body):
    reason: Why


class Opened(Answer):
    """The tenant is open to the caller's session until then, by the header X-Vanilla-Tenant."""

    tenant_id: UUID
    expires_at: datetime


class KeyBody(Body):
    """`user_id` is whose key it is and who pays; the caller's own without it."""

    name: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200), _NUL]
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=5)] = ["chat"]
    budget_tokens: Annotated[int, Field(strict=True, gt=0, le=2**63 - 1)] | None = None
    expires_at: AwareDatetime | None = None
    user_id: UUID | None = None


class Key(Answer):
    """`prefix` is all that is left of the key itself."""

    id: UUID
    user_id: UUID
    name: str
    prefix: str
    scopes: list[str]
    budget_tokens: int | None
    used_tokens: int
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    created_at: datetime


class NewKey(Key):
    """`key` is shown here and never again."""

    key: str


class AuditEntry(Answer):
    id: UUID
    created_at: datetime
    actor_id: UUID | None
    actor_role: str
    action: str
    target_type: str | None
    target_id: UUID | None
    details: dict[str, Any]
    ip: str | None
    request_id: str | None
