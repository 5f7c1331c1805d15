"""Run directories in, answers, tables and HTML pages out.

``answers`` find out what there is to say, and ``text`` says it in sentences. ``tables`` and ``charts`` show it without
knowing each other, and ``pages`` put all of them together with ``templates``. May not: simulate, or read anything but a
run directory.
"""
