"""What the ORM does with rows that it has loaded before: it keeps its objects as they are.

So the application may not have seen what a SELECT has read again
(https://docs.sqlalchemy.org/en/20/orm/queryguide/api.html#populate-existing).
"""

from __future__ import annotations

import weakref
from typing import Any

from sqlalchemy import inspect

_BY_ORM = "_result_disable_adapt_to_context"
_LOAD_OPTIONS = "_sa_orm_load_options"
"""Execution options by which the ORM tells itself that it loads objects, and how
(sqlalchemy/orm/context.py)."""

_known: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()
"""By compiled statement, which SQLAlchemy caches."""


def loads_objects(context: Any) -> bool:
    """Whether SQLAlchemy's execution context is that of an ORM statement that loads objects."""
    if context is None or _BY_ORM not in context.execution_options:
        return False
    compiled = context.compiled
    found = _known.get(compiled)
    if found is None:
        found = _known[compiled] = _has_entity(context.invoked_statement)
    return found


def _has_entity(statement: Any) -> bool:
    try:
        columns = statement.column_descriptions
    except Exception:  # of an internal statement that describes no columns
        return True
    return any(each["expr"] is each["entity"] is not None for each in columns)


def next_load() -> int:
    """A number between those that the ORM gives to its loads (sqlalchemy/orm/loading.py).

    An object keeps the number of the load that has set its attributes.
    """
    from sqlalchemy.orm import loading  # needed only where the ORM is at work

    return loading._new_runid()


def loads_part(context: Any) -> bool:
    """Whether a load does not set all attributes of each object to which it gives its number.

    It loads single attributes, or refreshes an object by a row with columns of others as well.
    """
    options = getattr(context.invoked_statement, "_compile_options", None)
    if getattr(options, "_only_load_props", None) is not None:
        return True
    how = context.execution_options.get(_LOAD_OPTIONS)
    return how is not None and how._refresh_state is not None and " JOIN " in context.statement


def loads_relationship(context: Any) -> bool:
    """Whether a load is for a relationship of objects that are there, which may keep the old one.

    No rows are a value of it, too. A lazy load comes only where the object has none.
    """
    return bool(_path(context)) and not _is_lazy(context)


def keeps_objects(context: Any, since: int, until: float) -> bool:
    """Whether there are objects that an earlier run has set, and that this load does not refresh.

    ``since``, ``until``: the loads of the earlier run have numbers between these.

    For a statement that loads objects, before the ORM gets the rows. Objects that were expired, or
    that the application no longer refers to, are loaded anew.
    """
    sessions = [each for each in _all_sessions() if _uses(each, context.root_connection)]
    how = context.execution_options.get(_LOAD_OPTIONS)
    refreshed = None if how is None else how._refresh_state
    if how is not None and refreshed is None and how._populate_existing and len(sessions) == 1:
        return False
    classes = _filled_classes(context)
    return not sessions or any(
        (since < state.runid or _may_be_filled(state, classes))
        for session in sessions
        for state in session.identity_map.all_states()
        if state.runid is not None and state.runid < until
        if not state.expired and state is not refreshed
    )


def _may_be_filled(state: Any, classes: tuple[type, ...]) -> bool:
    """Whether a load may have set attributes of an object of an earlier load.

    It sets only what the object did not have: relationships, columns that were left out, and those
    of a subclass.
    """
    mapper = state.mapper
    return issubclass(mapper.class_, classes) and (
        mapper.inherits is not None
        or bool(state.load_options)
        or any(each.deferred for each in mapper.column_attrs)
        or any(each.key in state.dict for each in mapper.relationships)
    )


def _filled_classes(context: Any) -> tuple[type, ...]:
    """Those of whose objects a load may set attributes, where an object does not have them."""
    if _is_lazy(context):
        return ()
    if " JOIN " in context.statement:
        return (object,)
    try:
        described = context.invoked_statement.column_descriptions
    except Exception:  # as above
        return (object,)
    found = [each["entity"] for each in described if each["entity"] is not None]
    return tuple(inspect(each).class_ for each in (*found, *_path(context)[-2:-1]))


def _is_lazy(context: Any) -> bool:
    how = context.execution_options.get(_LOAD_OPTIONS)
    return how is not None and how._lazy_loaded_from is not None


def _path(context: Any) -> Any:
    """The way from the objects of a query to those that are loaded for a relationship."""
    options = getattr(context.invoked_statement, "_compile_options", None)
    return getattr(options, "_current_path", None) or ()


def _all_sessions() -> list[Any]:
    from sqlalchemy.orm import session  # needed only where the ORM is at work

    references = session._sessions.valuerefs()  # a copy: other threads may make sessions
    return [each for reference in references if (each := reference()) is not None]


def _uses(session: Any, connection: Any) -> bool:
    transaction = session.get_transaction()
    return transaction is not None and connection in transaction._connections
