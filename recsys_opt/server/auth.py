"""The API token: where it comes from, and whether a client has it."""

from __future__ import annotations

import hmac
import os
from pathlib import Path

from recsys_opt.errors import InputError
from recsys_opt.server.refusal import RefusalError

VARIABLE = "RECSYS_OPT_TOKEN"
FEWEST_CHARACTERS = 16


def read_token(file: Path | None) -> str | None:
    """The token in a file, or else in the environment; None: neither has one.

    Not a flag: everyone on the machine can read those.
    """
    if file is not None:
        try:
            token, where = file.read_text(encoding="utf-8").strip(), str(file)
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"the token file {file} cannot be read: {error}") from None
    else:
        if VARIABLE not in os.environ:
            return None
        token, where = os.environ[VARIABLE].strip(), f"the environment's {VARIABLE}"
    if len(token) < FEWEST_CHARACTERS or not token.isascii() or any(c.isspace() for c in token):
        raise InputError(
            f"the token in {where} must be at least {FEWEST_CHARACTERS} ASCII characters without spaces; "
            "make one: openssl rand -hex 32"
        )
    return token


def check_token(token: str | None, authorization: str | None) -> None:
    """Raises RefusalError unless a header `Authorization: Bearer TOKEN` has the token, where there is one.

    How long the comparison takes says nothing about how much of a wrong token was right.
    """
    if token is None:
        return
    scheme, _, given = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not given:
        raise RefusalError("unauthenticated", "this server needs a token: Authorization: Bearer TOKEN")
    if not hmac.compare_digest(given.strip().encode("latin-1", "replace"), token.encode()):
        raise RefusalError("unauthenticated", "the token is not this server's")
