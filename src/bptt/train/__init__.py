"""Training, and using what was trained. Nothing is imported here: a mistake is answered before torch is loaded.

run.py         the entrances of `bptt train`: start, resume        predict, inspect, explain: of the other commands
loop.py        what happens when; training.py: one update, one validation, one checkpoint; record.py notes it
events.py      what happened; wording.py: what its numbers are called
checks/        what is refused before it costs time
storage/       what a run keeps on disk
display/       what the user sees

task → stream → batch → gradient strategy → Σ over processes → clip → optimizer → metrics, checkpoint → report
"""
