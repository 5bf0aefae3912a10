"""`make gpu-proof`: all that can only be shown on a GPU, by one command. docs/hardware.md says how to use it.

    __main__.py     the command line: which pieces run, and what is said at the end
    checks.py       a minute of checks: GPU, compiler, packages, /dev/shm
    jobs.py         what is measured, in its order and with its time, and how it is split into pieces
    work.py         each job: a command of this project, run as a user would, and the figures that it gives
    process.py      a command that is shown, read and stopped when its time is over
    results.py      the file of rows, one JSON object a line
    fill.py         rows -> the tables of README.md and docs/BENCHMARKS.md

A rehearsal (REHEARSE=1) runs all of it with a tiny config and drawn cars, so that on a GPU nothing but the card is new.
"""
