"""Say a run's settings for people."""

from collections.abc import Sequence

from clipcls.outputs.journal import RunSettings

_MOST_PROMPTS = 10


def shown_settings(settings: RunSettings, model: str | None = None) -> list[tuple[str, str]]:
    """Return names and values of a run's settings; those that weren't used are left out.

    Args:
        settings: by the names of the options, as a journal keeps them.
        model: the model's name, where it is known; its fingerprint follows it.
    """
    found = []
    for option, value in settings.items():
        if value is None or value is False:
            continue
        text = "yes" if value is True else _text(option, value)
        if option == "--model":
            text = f"fingerprint {text[:12]}" if model is None else f"{model}, fingerprint {text[:12]}"
        found.append((option.removeprefix("--"), text))
    return found


def label_names(settings: RunSettings) -> list[str]:
    """Return the names of a run's labels, as far as its settings tell."""
    labels = settings.get("--labels")
    return [str(label[0]) for label in labels] if isinstance(labels, Sequence) else []


def _text(option: str, value: object) -> str:
    if option == "--labels" and isinstance(value, Sequence):
        return f"{len(value):,}"
    if option == "--prompts" and isinstance(value, Sequence) and not isinstance(value, str):
        more = f"\n… and {len(value) - _MOST_PROMPTS:,} more" if len(value) > _MOST_PROMPTS else ""
        return "\n".join(map(str, value[:_MOST_PROMPTS])) + more
    return f"{value:,}" if isinstance(value, int) else str(value)
