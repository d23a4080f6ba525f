"""A page is a module: `show` gives what its template needs; `live`, `act` and `stream` are there where it has more."""
