"""Tables of reports and of the terminal.

Tables know no charts and no pages.
"""
