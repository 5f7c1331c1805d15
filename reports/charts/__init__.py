"""Charts as inline SVG, and the choice of the charts that a run gets.

Charts know no pages, and of tables only the class; the numbers of a chart are a table that it carries.
"""
