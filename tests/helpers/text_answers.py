"""References with answers that are nearly right."""

TEXTS = [
    (["The quick brown fox jumps over the lazy dog."], "A quick brown fox jumped over lazy dogs"),
    (["Restart the router.\nThen call us."], "Then call us.\nRestart the router."),
    (["first version of it", "another accepted version"], "another version, accepted"),
    (["Größe ändern, bitte"], "Bitte Größe ändern"),
    (["one two three four five six"], ""),
]


REFERENCES = [r for r, _ in TEXTS]
ANSWERS = [a for _, a in TEXTS]
