from __future__ import annotations

import data_building_fakes
import pytest
from data_building_fakes import Writer


@pytest.fixture
def install(monkeypatch):
    """Put scripted models behind the specs that the tests name."""

    def put(writer: Writer | None = None, other: Writer | None = None) -> Writer:
        writer = writer or Writer()
        monkeypatch.setattr(data_building_fakes, "writer", writer)
        monkeypatch.setattr(data_building_fakes, "other", other or Writer(model_name="other-1"))
        return writer

    return put
