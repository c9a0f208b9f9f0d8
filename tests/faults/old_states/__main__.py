from __future__ import annotations

import sys

from ragingest.checkpoint.state import decode, encode
from tests.faults.old_states.making import add, checkpoints

kept = checkpoints()
if kept and encode(decode(kept[-1].read_bytes())) == kept[-1].read_bytes():
    sys.exit("the fields are those of the last one")
add()
