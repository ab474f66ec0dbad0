"""Files of prompts, one a line."""

from pathlib import Path

from halftone.foundation.errors import ConfigError

# Bounds that no list of prompts comes near, and a file of something else does.
_LARGEST_FILE, _LONGEST = 64 * 10**6, 10_000  # bytes; characters
_FIX = "Save it as UTF-8, one prompt a line."


def read_prompts(file: Path, option: str = "--prompts") -> list[str]:
    """Return the lines of ``file`` that are not empty.

    Args:
        option: through which the user named it, for messages.

    Raises:
        ConfigError: there is none, it is not text, or far longer than prompts are.
    """
    where = f"{option} {file}".strip()
    try:
        size = file.stat().st_size
        if size > _LARGEST_FILE:
            fix = "Split it, or take every tenth line."
            got = f"{size / 1e6:.0f} MB"
            raise ConfigError(where, f"a list of prompts, at most {_LARGEST_FILE // 10**6} MB", got, fix)
        content = file.read_bytes()
    except OSError as error:
        raise ConfigError(where, "a text file in UTF-8", error.strerror or type(error).__name__) from error
    try:
        # Windows' editors begin UTF-8 with a mark, and without one UTF-16 may pass for text with zeros in it.
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = len(f"{content[: error.start].decode('utf-8-sig')}?".splitlines())
        raise ConfigError(where, "a text file in UTF-8", f"bytes of something else in line {line}", _FIX) from error
    if "\0" in text:
        raise ConfigError(where, "a text file in UTF-8", "one with zero bytes (UTF-16?)", _FIX)
    lines = {number: line.strip() for number, line in enumerate(text.splitlines(), 1) if line.strip()}
    if not lines:
        fix = f"Write one, or {'leave the option out' if option else 'delete the file'}."
        raise ConfigError(where, "at least one prompt, one a line", "an empty file", fix)
    longest = max(lines, key=lambda number: len(lines[number]))
    if len(lines[longest]) > _LONGEST:
        got = f"{len(lines[longest])} characters in line {longest}: {lines[longest][:40]!r}..."
        raise ConfigError(where, f"prompts of at most {_LONGEST} characters, one a line", got, _FIX)
    return list(lines.values())
