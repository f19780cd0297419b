"""What is on disk: dataset, labels, fingerprint, plan, run, report. No torch, no computation."""
