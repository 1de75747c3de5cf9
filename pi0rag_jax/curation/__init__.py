"""Which demonstrations to keep, judged by a policy's own rollouts (Demo-SCORE, arXiv 2503.03707)."""
