"""What clients read from the source is what the operations say of themselves."""

import subprocess
import sys

import pytest

from loopwright.control.addresses import address_of
from loopwright.control.operation import every_operation
from loopwright.kernel.errors import NotFound


def test_every_operation_lives_where_its_source_says() -> None:
    operations = every_operation()
    assert len(operations) > 50
    for operation in operations:
        found = address_of(operation.name)
        assert (found.method, found.path, found.in_path) == (
            operation.method,
            operation.path,
            operation.in_path,
        )


@pytest.mark.parametrize("name", ["models.rolback", "../secrets.x", "no", "models", ""])
def test_an_unknown_name_is_told(name: str) -> None:
    with pytest.raises(NotFound, match="no such operation"):
        address_of(name)


def test_the_nearest_name_is_told() -> None:
    with pytest.raises(NotFound, match=r"models\.rollback"):
        address_of("models.rolback")


def test_asking_a_control_plane_loads_no_engine() -> None:
    program = (
        "import sys; from loopwright.control.client import connect; from loopwright.kernel.errors import Unavailable\n"
        "try: connect(None, 'http://127.0.0.1:9').call('models.rollback', model='m')\n"
        "except Unavailable: pass\n"
        "print([m for m in ('sqlalchemy', 'pydantic', 'numpy', 'duckdb', 'cryptography') if m in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"
