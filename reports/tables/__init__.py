"""Tables of pages and of the terminal.

Tables are made from points and answers; they know no charts and no pages.
"""
