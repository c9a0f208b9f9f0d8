"""Jobs that stopped half-way, as earlier versions left them: `format_<N>/<nn>.json` are the checkpoints, oldest
first, one for each set of fields that there has been; the ledger and the rejects beside them go with each.

    python -m tests.faults.old_states

adds the checkpoint of this version, if its fields are others than those of the last one.
"""
