"""The table of kernels."""

from __future__ import annotations

import pytest

from enterprise_gateway.core.errors import NotFoundError
from tests.support.gateway import running_gateway


async def test_the_table_is_what_the_methods_of_jupyter_client_see() -> None:
    """Kernels are entered, replaced and removed for both at once; iterations are not disturbed by that."""
    async with running_gateway() as gateway:
        manager = gateway.app.kernel_manager
        ids = [await manager.start_kernel(kernel_name="python3") for _ in range(2)]
        table = manager.table
        first, second = table
        assert manager.list_kernel_ids() == table.ids() == ids
        assert table.has(first)
        for kernel in table:
            table.remove(kernel.kernel_id)
        assert len(manager) == 0
        with pytest.raises(NotFoundError, match=ids[0]):
            table.find(ids[0])
        for kernel in (first, second):
            table.enter(kernel)
        another = await manager.make_kernel_manager(ids[0], "python3")
        table.replace(first, another)
        assert (table.get(ids[0]), table.has(first), ids[0] in manager) == (another, False, True)
        table.replace(another, first)
