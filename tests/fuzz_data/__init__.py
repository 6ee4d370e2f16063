"""Damaged data: `make fuzz-data N=2000 SEED=7`.

    readers.py    a small, valid source of each kind, and what is read of it, as rows
    damages.py    one byte, line, member or id of a source changed, and changes that mean nothing
    play.py       one source, damaged and read: the verdict
    __main__.py   many of them, a table of the verdicts, and how to repeat the first fault of each kind

Some cases accept to lose a few examples (`maxSkipped`). Then what is lost is listed, by file, each time alike.

What is read equals what is read of the undamaged source, or BadConfig names the file, or a line of the log names it. A
format without checksums cannot tell a letter from another: there a damage may change the one row that it hit, and no
other. Nothing else is right.
"""
