"""Training: the loop, its checkpoints and run folder, and several processes at once.

    check → task → model → loop (stream → gradient → processes → optimizer) → metrics, checkpoint → report

`bptt.train.run` holds the entrances: `start`, `resume`; `bptt.train.predict` uses what came out. Nothing is imported
here, so that a mistake on the command line is answered before torch is loaded.
"""
