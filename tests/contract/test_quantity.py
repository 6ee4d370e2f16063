from fractions import Fraction

import pytest
from kubernetes.utils.quantity import parse_quantity as parsed_by_the_client

from piton.contract.quantity import format_bytes, parse_quantity

SPELLINGS = ("500Gi", "1.5k", "2Ti", "7", "250m", ".5", "5.", "0.7", "9m", "3u", "2n", "1Ei", "1E", "1e9", "1E-3", "0")


@pytest.mark.parametrize("text", SPELLINGS)
def test_a_quantity_is_what_kubernetes_understands(text: str) -> None:
    assert parse_quantity(text) == parse_quantity(f"+{text}") == Fraction(parsed_by_the_client(text))


@pytest.mark.parametrize("text", ["700m 0.7", "2300m 2.3", "9m 0.009", "1100m 1.1", "1.5Gi 1536Mi", "4.35 4350000u"])
def test_two_spellings_of_one_amount_are_equal(text: str) -> None:
    one, other = text.split()

    assert parse_quantity(one) == parse_quantity(other)


@pytest.mark.parametrize(
    "text", ["5GiB", "", ".", "e5", "1e", "1K", "1ki", "-1", "1e3m", "1e100", " 1", "1 ", "1\n", "1_0", "nan", "inf"]
)
def test_a_quantity_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=" is not a quantity; write it like 500Gi"):
        parse_quantity(text)


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
