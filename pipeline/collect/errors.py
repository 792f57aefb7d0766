"""What can keep a row from going on its way. Each text is one line: why, and what to do where something can be done.

Exception
  JournalError        the journal cannot be opened
  JournalFull         the journal has taken nothing, none of several rows
  TableMissing        there is no table, yet or at the moment
  TableUnusable       there is one, and nothing can be sent to it as things are
  StillInserting      an earlier INSERT of ours has not ended
"""


class JournalError(Exception):
    """The journal cannot be opened."""


class JournalFull(Exception):
    """Nothing was written, none of several rows: the disk or the journal's own limit is full."""


class TableMissing(Exception):
    """The table does not exist (yet, or at the moment)."""


class TableUnusable(Exception):
    """The table is not what it has to be, or not yet."""


class StillInserting(Exception):
    """An earlier INSERT of ours is still under way on the server."""
