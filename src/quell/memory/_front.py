"""What stands at the top of a skill: YAML between two lines of `---`, bounded, and nothing of it but plain values."""

from __future__ import annotations

from collections.abc import Mapping

_FRONT_MAX_CHARS = 16 * 1024
_DEPTH_MAX = 200
"""More brackets than anybody writes: the parser goes as deep as they do."""


def front_of(text: str) -> tuple[Mapping[str, object], str]:
    """Return the fields at the top of a text, and what stands below. Raises ValueError when there are none."""
    lines = text.splitlines(keepends=True)
    if not lines or lines[0].rstrip() != "---":
        raise ValueError("has no front matter")
    end = next((at for at, line in enumerate(lines) if at and line.rstrip() == "---"), 0)
    if not end:
        raise ValueError("has front matter without an end")
    front = "".join(lines[1:end])
    if len(front) > _FRONT_MAX_CHARS or sum(front.count(bracket) for bracket in "[{") > _DEPTH_MAX:
        raise ValueError("has too much front matter")
    # Loaded here: most processes have no skills.
    import yaml  # noqa: PLC0415

    try:
        fields = yaml.safe_load(front)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        said = " ".join(str(getattr(error, "problem", None) or error).split())
        raise ValueError(f"has front matter that is no YAML: {said[:200]}") from error
    if not isinstance(fields, dict):
        # Not a mistake of types in our code: of the file.
        raise ValueError("has front matter without keys")  # noqa: TRY004
    return {str(key): value for key, value in fields.items()}, "".join(lines[end + 1 :])
