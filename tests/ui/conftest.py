"""Pages and a browser, one of each for a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from served_page import ServedPage, serve_page


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedPage]:
    """A page with the scenario ``tiny.yaml``, whose full run takes a second."""
    page = serve_page(tmp_path_factory.mktemp("page"))
    yield page
    if page.process.poll() is None:
        page.stop()
