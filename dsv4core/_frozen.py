"""The base of every described thing: frozen, closed to unknown names, raising this package's errors."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError

from dsv4core.errors import DSV4CoreError


class FrozenModel(BaseModel):
    """A pydantic model that raises `error` instead of pydantic's own exception.

    Subclasses set `error` and may set `noun`, the words a message begins with.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    error: ClassVar[type[DSV4CoreError]] = DSV4CoreError
    noun: ClassVar[str] = "model"

    def __init__(self, **values: Any) -> None:
        """Validate `values`; every problem found is named in one message."""
        try:
            super().__init__(**values)
        except ValidationError as problem:
            raise self.error(_explain(self.noun, type(self), values, problem)) from None


def _explain(noun: str, model: type[BaseModel], values: dict[str, Any], problem: ValidationError) -> str:
    """One sentence per problem, with the value that was given and the names that exist."""
    name = f"{noun} {values['id']!r}" if "id" in values else noun
    lines: list[str] = []
    for item in problem.errors():
        where = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            lines.append(f"{where!r} is not a field; the fields are {', '.join(model.model_fields)}")
        elif item["type"] == "missing":
            lines.append(f"{where!r} is missing")
        elif item["type"] == "value_error":
            text = str(item["msg"]).removeprefix("Value error, ")
            lines.append(f"{where}: {text}" if where else text)
        else:
            lines.append(f"{where!r} is {item['input']!r}: {item['msg']}")
    return f"{name}: " + "; ".join(lines)
