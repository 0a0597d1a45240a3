"""A service of a gallery that needs no model."""

import pytest
from serving import TOKEN, FakeGallery, running


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with running(FakeGallery(tmp_path_factory.mktemp("gallery")), token=TOKEN) as client:
        yield client


@pytest.fixture
def gallery(tmp_path):
    return FakeGallery(tmp_path)
