"""Sets of the Hugging Face hub: said before they are fetched, and one line where that fails."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from lightning.pytorch.utilities import rank_zero_info

from oneshot_lit.data.sources import ConversationSource
from oneshot_lit.data.tables import HuggingFaceDataset
from oneshot_lit.errors import OneShotError

# Without a limit, a firewall that drops packets would stop a run for minutes.
_SECONDS = 5.0


def announce_hub_sets(sources: Mapping[str, ConversationSource | None]) -> None:
    """Say which sets come from the hub; without a network, check that the cache holds them.

    Args:
        sources: Key of the config, such as ``data.val_sets.harmful.source``, -> its source.

    Raises:
        OneShotError: naming every set that is neither reachable nor in the cache, and the option
            that takes a file for it.
    """
    sets = [(key, part) for key, source in sources.items() for part in _of_hub(source)]
    for key, part in sets:
        rank_zero_info(
            f"from the Hugging Face hub, or its cache: {part.describe()} for {key}; licence: "
            f"{part.licence or 'see huggingface.co/datasets/' + part.path}"
        )
    if not sets or hub_answers():
        return
    missing: dict[str, list[str]] = {}
    with _offline():
        for key, part in sets:
            try:
                part.records()
            except OneShotError:
                missing.setdefault(key, []).append(part.describe())
    if missing:
        names = "; ".join(f"{key} ({', '.join(parts)})" for key, parts in missing.items())
        key = next(iter(missing))
        raise OneShotError(
            f"the Hugging Face hub cannot be reached, and its cache lacks {names}. Give a file for "
            f"each, such as --{key} TableFile --{key}.path FILE, a table with the column prompt."
        )


def hub_answers() -> bool:
    """Whether the hub can be reached; tried once, for a few seconds."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=_SECONDS)
    except Exception:  # each release of the library has errors of its own
        return False
    return True


def _of_hub(source: ConversationSource | None) -> Iterator[HuggingFaceDataset]:
    if isinstance(source, HuggingFaceDataset) and source.of_hub:
        yield source
    for part in source.parts if source is not None else ():
        yield from _of_hub(part)


@contextmanager
def _offline() -> Iterator[None]:
    """Let the libraries read their cache without asking the hub, which they would do for long."""
    import datasets
    from huggingface_hub import constants

    before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before
