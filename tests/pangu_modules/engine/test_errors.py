import pytest

from pangu_modules.common.errors import UsageError
from pangu_modules.engine.errors import usage_errors


@pytest.mark.parametrize(
    ("part", "message", "expected"),
    [
        ("module", "no such layer", "module: no such layer"),
        ("export", "export: no such layout", "export: no such layout"),
        ("export", "exports: none", "export: exports: none"),
        ("", "no such layer", "no such layer"),
    ],
)
def test_an_error_names_its_part_once(part: str, message: str, expected: str) -> None:
    with pytest.raises(UsageError) as caught, usage_errors(part):
        raise ValueError(message)
    assert str(caught.value) == expected
