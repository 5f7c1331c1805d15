"""What reports and the terminal say, in sentences: one module a subject.

``answers`` finds out what there is to say, as numbers and states. Only this package and ``formatting``
turn that into words, and nothing reads these words to decide. This package may import ``answers``, but not the other
way round. No HTML.
"""
