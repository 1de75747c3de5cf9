"""Flow matching explained by running it: in the plane, where everything is known, and in a policy's own chunks."""
