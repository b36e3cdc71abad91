import gc

import pytest

from scheduler import garbage


def _fail() -> None:
    with garbage.imports():
        assert not gc.isenabled()
        raise ImportError


def test_the_collector_never_looks_at_what_imports_create() -> None:
    gc.collect()
    frozen = gc.get_freeze_count()
    try:
        with pytest.raises(ImportError):
            _fail()
        assert gc.isenabled()
        assert gc.get_freeze_count() > frozen
    finally:
        gc.unfreeze()
