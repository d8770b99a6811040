"""Finding out why it does not work: each part of the way looked at by itself, with one line of cause and one of remedy.
The room knows how to look. It must not change anything, and holds no state between two examinations."""
