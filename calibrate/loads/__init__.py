"""``loraplan calibrate loads``: the stages of an adapter load, and the files they are timed on."""
