import random
import tracemalloc
from pathlib import Path

from data_modules.readers.row_log import Places, Row


def test_places_are_those_that_came_first() -> None:
    files = [Row(Path("a.jsonl"), 0, "line"), Row(Path("b.parquet"), 0), Row(Path("a.jsonl"), 0)]
    given = [(f"{at}-{file}", Row(files[file].path, at, files[file].unit)) for at in range(1, 200) for file in range(3)]
    random.Random(0).shuffle(given)
    places: Places[str] = Places()
    assert all(places.note(key, row) is None for key, row in given)
    later = Row(Path("c.csv"), 7, "line")
    assert [places.note(key, later) for key, _ in given] == [row for _, row in given]
    assert str(places.note("12-0", later)) == "a.jsonl, line 12"


def test_a_place_takes_little_memory() -> None:
    names = [f"post {number}" for number in range(100_000)]
    places: Places[str] = Places()
    path = Path("posts.jsonl")
    tracemalloc.start()
    for number, name in enumerate(names, 1):
        places.note(name, Row(path, number, "line"))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 90 * len(names)  # a dictionary of so many keys takes about 50 bytes each, a Row alone 60 and more
