"""A teacher's console: a simulated robot in a browser, which people take over from the policy and hand back."""
