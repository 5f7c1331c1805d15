"""What follows from the code in the reference pages; ``docs/generate.py`` puts it into them."""
