"""Whether a query can be answered: the one place that every query passes, whatever it came in as."""

from __future__ import annotations

from dataclasses import dataclass

from recsys_opt.errors import InputError
from recsys_opt.server.refusal import RefusalError
from recsys_opt.server.wire import Query
from recsys_opt.serving.profile import ServedModel
from recsys_opt.serving.requests import check_request


@dataclass(frozen=True)
class QueryCheck:
    """The limits that a query is held to."""

    model: ServedModel
    name: str
    """What queries may call the model."""
    max_samples: int
    """Of one query."""
    max_within_s: float
    """The latest that an answer may be wanted."""

    def check(self, query: Query) -> None:
        """Raises RefusalError, which names value, place and limit, unless the model can answer the query."""
        if query.model and query.model != self.name:
            raise RefusalError(
                "unknown_model", f"there is no model {query.model[:100]!r}; this server has {self.name!r}"
            )
        if query.samples > self.max_samples:
            raise RefusalError(
                "too_large",
                f"the query has {query.samples:,} samples; at most {self.max_samples:,} are taken: split it",
            )
        if query.within_s is not None and query.within_s > self.max_within_s:
            raise RefusalError(
                "bad_request",
                f"the answer is wanted within {query.within_s:g} s; the server keeps a query for at most "
                f"{self.max_within_s:g} s",
            )
        try:
            check_request(self.model, query.dense, query.ids)
        except InputError as error:
            raise RefusalError("bad_request", str(error)) from None
