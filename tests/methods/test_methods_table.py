"""The table of `docs/methods.md`."""

from __future__ import annotations

from pathlib import Path

from oneshot_lit.methods.about import STAGES, markdown, methods

PAGE = Path("docs/methods.md")


def test_the_page_has_the_table_of_all_methods() -> None:
    assert markdown() in PAGE.read_text()


def test_each_method_has_a_config_of_its_own() -> None:
    rows = methods()
    assert len({row.config for row in rows}) == len(rows) >= 16
    for row in rows:
        assert (Path("configs") / row.config).is_file(), row.config
        assert row.stage in STAGES
    shipped = {f"defence/{path.name}" for path in Path("configs/defence").glob("*.yaml")}
    helpers = {"defence/unaligned.yaml", "defence/safe_adapter.yaml"}
    assert shipped - {row.config for row in rows} == helpers
