"""The prediction whether a transaction that begins with a SELECT will write."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qsession.sqlite.prediction import READ_ONLY_RUNS, TEXTS, Prediction


def test_a_text_is_a_writer_until_it_has_proved_otherwise() -> None:
    """Sixteen transactions in a row that wrote nothing make it a reader."""
    prediction = Prediction()
    for _ in range(READ_ONLY_RUNS):
        assert prediction.writes("SELECT a")
        prediction.note("SELECT a", wrote=False)
    assert not prediction.writes("SELECT a")
    assert prediction.writes("SELECT b")


def test_one_write_sets_it_back() -> None:
    """A single transaction that writes makes it a writer for sixteen more."""
    prediction = Prediction()
    for _ in range(READ_ONLY_RUNS + 5):
        prediction.note("SELECT a", wrote=False)
    prediction.note("SELECT a", wrote=True)
    for _ in range(READ_ONLY_RUNS):
        assert prediction.writes("SELECT a")
        prediction.note("SELECT a", wrote=False)
    assert not prediction.writes("SELECT a")


def test_the_table_is_bounded_and_forgets_the_least_used() -> None:
    """A text that is in use stays known among any number of others."""
    prediction = Prediction()
    for _ in range(READ_ONLY_RUNS):
        prediction.note("SELECT kept", wrote=False)
    for n in range(3 * TEXTS):
        prediction.note(f"SELECT {n}", wrote=False)
        if n % 100 == 0:
            prediction.note("SELECT kept", wrote=False)
    assert len(prediction) == TEXTS
    assert not prediction.writes("SELECT kept")
    prediction.note("SELECT of a writer", wrote=True)
    assert len(prediction) == TEXTS


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans())))
def test_it_counts_runs_and_nothing_else(history: list[tuple[str, bool]]) -> None:
    """Whatever happened before, only the last run of read-only transactions counts."""
    prediction = Prediction()
    runs = dict.fromkeys("abc", 0)
    for each, wrote in history:
        prediction.note(each, wrote)
        runs[each] = 0 if wrote else runs[each] + 1
    for each, run in runs.items():
        assert prediction.writes(each) == (run < READ_ONLY_RUNS)


def test_what_a_reader_refused_is_remembered() -> None:
    """Such a text writes whenever it is run; the one not met for longest is forgotten first."""
    prediction = Prediction()
    for number in range(TEXTS):
        prediction.note_refused(f"DELETE {number}")
    prediction.note_refused("DELETE 0")
    prediction.note_refused("DELETE new")
    assert prediction.is_refused("DELETE 0")
    assert prediction.is_refused("DELETE new")
    assert not prediction.is_refused("DELETE 1")
