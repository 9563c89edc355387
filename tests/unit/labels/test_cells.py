"""What a column of cells is: numbers, yes/no values, text, or values with a cell that is none."""

import pyarrow as pa
import pytest

from ecgfast.labels.columns import BadCell, clean, typed


def read(cells: list[str | None], *, decimal_comma: bool = False) -> object:
    """Values of the column, or row, value and count of its bad cells."""
    column = clean(pa.chunked_array([pa.array(cells, pa.string())]))
    found = typed(column, decimal_comma=decimal_comma)
    if isinstance(found, BadCell):
        return found.row, found.value, found.count
    return found.to_pylist()


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        (["1", " 2.5 ", "+3", "-.5", "1e3", "4."], [1, 2.5, 3, -0.5, 1000, 4]),
        (["1", "NA", None, "-"], [1, None, None, None]),
        (["true", "No", "1", "0", ""], [True, False, True, False, None]),
        (["YES", " false "], [True, False]),
        (["1", "0"], [1.0, 0.0]),
        ([None, "NA"], [None, None]),
        (["a", "b", ""], ["a", "b", None]),
        (["a"], ["a"]),
        ([], []),
        (["33,5", "20"], (1, "33,5", 1)),
        (["1", "x"], (2, "x", 1)),  # a single one, whatever its share
        (["x", None, "1"], (1, "x", 1)),
        (["x", "y", "1"], ["x", "y", "1"]),
    ],
)
def test_columns(cells: list[str | None], values: object) -> None:
    found = read(cells)
    assert found == values
    if isinstance(found, list) and isinstance(values, list):
        assert list(map(type, found)) == [float if type(v) is int else type(v) for v in values]


@pytest.mark.parametrize(("num_numbers", "is_text"), [(18, False), (17, True)])
def test_more_than_one_cell_in_ten_that_is_none_makes_text(num_numbers: int, is_text: bool) -> None:
    cells = ["x", *["1"] * num_numbers, None, "", "y"]
    if is_text:
        assert read(cells) == [None if cell == "" else cell for cell in cells]
    else:
        assert read(cells) == (1, "x", 2)


@pytest.mark.parametrize("cell", ["1;2", "1 | 2", "3/4", "1 2", "426783006,164889003"])
def test_a_list_of_numbers_makes_text(cell: str) -> None:
    cells: list[str | None] = [*["1"] * 30, cell]
    assert read(cells) == cells


@pytest.mark.parametrize(
    ("cells", "bad"),
    [
        (["yes", "no", "7"], (3, "7", 1)),
        (["8", "yes", "no", "7"], (1, "8", 2)),  # half are words
        (["7", "yes", "8"], (2, "yes", 1)),
        (["7", "yes", "8", None, "1"], (2, "yes", 1)),
        (["7", None, "yes"], (1, "7", 1)),
        (["yes", "no", "maybe"], (3, "maybe", 1)),
        (["yes", "7", "maybe", "no"], (3, "maybe", 1)),
    ],
)
def test_numbers_beside_words(cells: list[str | None], bad: tuple[int, str, int]) -> None:
    """The rarer ones are wrong."""
    assert read(cells) == bad


def test_a_bad_cell_is_shown_as_40_letters_of_one_line() -> None:
    assert read(["1", "a \n b" + "c" * 50]) == (2, "a b" + "c" * 37, 1)


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        (["33,5", "-,25", "+7,", "8"], [33.5, -0.25, 7, 8]),
        (["33,5", "2.5"], (1, "33,5", 1)),  # one sign in a column
        (["1,5", "a,b"], (2, "a,b", 1)),
    ],
)
def test_decimal_commas(cells: list[str | None], values: object) -> None:
    assert read(cells, decimal_comma=True) == values
