"""Where the files of `examples/` are."""

from pathlib import Path


def folder(name: str) -> Path:
    """A folder of the examples, in the package or beside it in a checkout."""
    package = Path(__file__).parents[1]
    for candidate in (package, package.parents[1]):
        if (candidate / "examples" / name).is_dir():
            return candidate / "examples" / name
    raise FileNotFoundError("the examples are neither in the package nor beside it")
