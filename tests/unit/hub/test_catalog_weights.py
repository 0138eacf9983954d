"""The weights that ship with the platform go into the object store at the start."""

from pathlib import Path
from typing import Any, cast

import pytest

from hub.catalog import seed_weights
from lexicon.faults import Fault, FaultCode
from modelspec.catalog import Catalog, load_catalog

CATALOG = Path(__file__).parents[3] / "deploy" / "catalog"


class FullStore:
    """An object store that has room for nothing."""

    def __init__(self, code: FaultCode) -> None:
        self.code = code

    async def head(self, key: str) -> None:
        return None

    async def put(self, key: str, *_: Any, **__: Any) -> None:
        raise Fault(self.code)


@pytest.fixture
def catalog() -> Catalog:
    return load_catalog(CATALOG)


async def test_a_full_store_does_not_keep_the_hub_from_starting(catalog: Catalog) -> None:
    """Only a hub that runs can delete what fills the store."""
    await seed_weights(catalog, cast(Any, None), cast(Any, FullStore(FaultCode.STORAGE_FULL)))


async def test_any_other_trouble_does(catalog: Catalog) -> None:
    """A store that cannot be read at all is found out at the start."""
    broken = FullStore(FaultCode.STORAGE_CHECKSUM_MISMATCH)
    with pytest.raises(Fault) as caught:
        await seed_weights(catalog, cast(Any, None), cast(Any, broken))
    assert caught.value.code is FaultCode.STORAGE_CHECKSUM_MISMATCH
