import pytest

from piton.contract.quantity import format_bytes, parse_quantity


@pytest.mark.parametrize(
    ("text", "number"), [("500Gi", 500 * 2**30), ("1.5k", 1500), ("2Ti", 2 * 2**40), ("7", 7), ("250m", 0.25)]
)
def test_a_quantity_is_what_kubernetes_understands(text: str, number: float) -> None:
    assert parse_quantity(text) == number


def test_a_quantity_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="'5GiB' is not a quantity"):
        parse_quantity("5GiB")


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (999.9, "1.00 kB"),
        (12_885_000_000, "12.9 GB"),
        (999_600, "1.00 MB"),
        (1e18, "1000 PB"),
    ],
)
def test_bytes_are_shown_with_three_digits(size: float, text: str) -> None:
    assert format_bytes(size) == text
