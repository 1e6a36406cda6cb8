"""A schema that is broken in one place."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """`tables` are those whose cells are run; `visible` says that a row must leak, so the matrix alone must see it.

    `function` is the one that is broken, by schema and name; `title` stands for a statement that is a whole body.
    """

    kind: str
    statement: str
    tables: tuple[str, ...] = ()
    visible: bool = False
    function: str = ""
    title: str = ""

    def __str__(self) -> str:
        return f"{self.kind}: {self.title or self.statement}"
