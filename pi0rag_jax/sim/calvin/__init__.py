"""CALVIN's play table for MuJoCo: drawer, sliding cabinet, switch, button, two lights, three blocks, 34 tasks."""
