"""A mobile manipulator in a flat of four rooms: a world of tasks by language, from driving to fetching."""
