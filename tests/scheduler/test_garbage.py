import gc

import pytest

from scheduler import garbage


def _fail() -> None:
    with garbage.imports():
        assert not gc.isenabled()
        raise ImportError


def test_what_imports_create_is_never_collected_and_later_garbage_is() -> None:
    gc.collect()
    frozen = gc.get_freeze_count()
    try:
        with pytest.raises(ImportError):
            _fail()
        assert gc.isenabled()
        assert gc.get_freeze_count() > frozen
    finally:
        gc.unfreeze()
