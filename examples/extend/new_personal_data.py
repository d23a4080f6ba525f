"""A kind of personal data of your own: staff numbers such as E-123456, where "staff" or "employee" stands before them.

Run it: python examples/extend/new_personal_data.py SOURCE OUT    (any file that `tuneloop prepare` reads)
"""

import sys

import tuneloop
from tuneloop.data.pii import Kind, add_kind

STAFF = Kind("STAFF_NUMBER", "numbers of employees", pattern=r"\bE-\d{6}\b", words=("staff", "employee"))
add_kind(STAFF)

if __name__ == "__main__":
    dataset = tuneloop.prepare(sys.argv[1], out=sys.argv[2])
    print(dataset.manifest["personal"].get("STAFF_NUMBER", 0), "staff numbers were replaced")
